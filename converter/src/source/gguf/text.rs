//! Language models: `llama`, `qwen2`, `qwen2vl`, `qwen3`, `qwen3vl`, `phi3`, `gemma3`.

use serde_json::{Map as Object, Value as Json, json};

use super::super::error::{Result, SourceError, malformed};
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::vocabulary::Vocabulary;

/// Layout of attention and feed-forward weights in an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Llama: query and key rows permuted by llama.cpp.
    Llama,
    /// Qwen2 and the text part of Qwen2-VL: query, key and value with biases.
    Qwen2,
    /// Qwen3 and the text part of Qwen3-VL: norms of queries and keys, no biases.
    Qwen3,
    /// Phi-3: fused query, key and value, fused gate and up.
    Phi3,
    /// Gemma 3: norms of queries and keys, two norms around each part of a layer.
    Gemma3,
}

/// Names of a language model and its output head in the normal form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub(super) model: &'static str,
    pub(super) head: &'static str,
}

impl Names {
    /// Names at the top level.
    pub(super) const TOP: Self = Self {
        model: "model",
        head: "lm_head",
    };

    /// Names of a language model inside another model.
    pub(super) const NESTED: Self = Self {
        model: "language_model.model",
        head: "language_model.lm_head",
    };
}

/// Sizes of a language model, from the metadata.
#[derive(Debug)]
pub(super) struct TextModel {
    pub(super) kind: Kind,
    pub(super) hidden: usize,
    /// Rows of the stored embedding.
    stored_vocab: usize,
    /// Rows of the embedding, and the stored row that the additional ones repeat.
    vocab: (usize, usize),
    layers: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    context: usize,
    rms_eps: f64,
    rope_theta: f64,
    tied: bool,
}

impl TextModel {
    /// Reads the sizes of architecture `arch`.
    pub(super) fn read(assembly: &Assembly<'_, '_>, arch: &str, kind: Kind) -> Result<Self> {
        let header = assembly.header;
        let key = |name: &str| format!("{arch}.{name}");
        let hidden = header.need_size(&key("embedding_length"))?;
        let heads = header.need_size(&key("attention.head_count"))?;
        let head = match header.size(&key("attention.key_length"))? {
            Some(head) => head,
            None => hidden / heads,
        };
        if head == 0 {
            return Err(malformed(
                &header.file,
                format!("{heads} heads for a hidden size of {hidden}"),
                "at least one element per head",
            ));
        }
        let embedding = assembly.shape("token_embd.weight")?;
        let vocab = embedding.first().copied().unwrap_or(0);
        Ok(Self {
            kind,
            hidden,
            stored_vocab: vocab,
            vocab: (vocab, 0),
            layers: header.need_size(&key("block_count"))?,
            feed_forward: header.need_size(&key("feed_forward_length"))?,
            heads,
            kv_heads: match header.size(&key("attention.head_count_kv"))? {
                Some(n) if n > 0 => n,
                _ => heads,
            },
            head,
            context: context(header, arch, kind)?,
            rms_eps: header.need_number(&key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: header.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            tied: !assembly.has("output.weight"),
        })
    }

    /// Extends the embedding so that token `id` has a row. New rows repeat row `filler`, which
    /// should be that of a token that is never predicted. The number of rows is a multiple of 64,
    /// as in the checkpoints on the hub.
    pub(super) fn make_room(&mut self, id: u32, filler: u32) {
        let needed = id as usize + 1;
        if needed > self.vocab.0 && (filler as usize) < self.stored_vocab {
            self.vocab = (needed.next_multiple_of(64), filler as usize);
        }
    }

    /// Adds the embedding, or a matrix of the same shape.
    fn embedding(
        &self,
        assembly: &mut Assembly<'_, '_>,
        names: (String, &str),
        out: &mut Tensors,
    ) -> Result<()> {
        let stored = [self.stored_vocab, self.hidden];
        if self.vocab.0 == self.stored_vocab {
            assembly.whole(out, names, &stored)
        } else {
            assembly.extended(out, names, stored, self.vocab)
        }
    }

    /// Adds all tensors, those of the model and of the output head under names that begin with
    /// `model` and `head`.
    pub(super) fn tensors(
        &self,
        assembly: &mut Assembly<'_, '_>,
        Names { model, head }: Names,
        out: &mut Tensors,
    ) -> Result<()> {
        let input = (format!("{model}.embed_tokens.weight"), "token_embd.weight");
        self.embedding(assembly, input, out)?;
        if !self.tied {
            let output = (format!("{head}.weight"), "output.weight");
            self.embedding(assembly, output, out)?;
        }
        let norm = (format!("{model}.norm.weight"), "output_norm.weight");
        self.norm(assembly, norm, self.hidden, out)?;
        for layer in 0..self.layers {
            self.layer(assembly, model, layer, out)?;
        }
        Ok(())
    }

    /// Adds the scale of a norm.
    fn norm(
        &self,
        assembly: &mut Assembly<'_, '_>,
        names: (String, &str),
        width: usize,
        out: &mut Tensors,
    ) -> Result<()> {
        match self.kind {
            Kind::Gemma3 => assembly.shifted(out, names, width, -1.0),
            _ => assembly.whole(out, names, &[width]),
        }
    }

    /// Returns the norms of a layer: original and stored name, and width.
    fn norms(&self) -> Vec<(&'static str, &'static str, usize)> {
        let (hidden, head) = (self.hidden, self.head);
        let input = ("input_layernorm.weight", "attn_norm.weight", hidden);
        let after_attention = "post_attention_layernorm.weight";
        let of_heads = [
            ("self_attn.q_norm.weight", "attn_q_norm.weight", head),
            ("self_attn.k_norm.weight", "attn_k_norm.weight", head),
        ];
        let mut norms = vec![input];
        match self.kind {
            Kind::Gemma3 => norms.extend([
                (after_attention, "post_attention_norm.weight", hidden),
                (
                    "pre_feedforward_layernorm.weight",
                    "ffn_norm.weight",
                    hidden,
                ),
                (
                    "post_feedforward_layernorm.weight",
                    "post_ffw_norm.weight",
                    hidden,
                ),
            ]),
            _ => norms.push((after_attention, "ffn_norm.weight", hidden)),
        }
        if matches!(self.kind, Kind::Qwen3 | Kind::Gemma3) {
            norms.extend(of_heads);
        }
        norms
    }

    fn layer(
        &self,
        assembly: &mut Assembly<'_, '_>,
        model: &str,
        layer: usize,
        out: &mut Tensors,
    ) -> Result<()> {
        let target = |rest: &str| format!("{model}.layers.{layer}.{rest}");
        let stored = |rest: &str| format!("blk.{layer}.{rest}");
        let (hidden, ffn) = (self.hidden, self.feed_forward);
        let mut plain = vec![
            (
                "self_attn.o_proj.weight",
                "attn_output.weight",
                vec![hidden, self.heads * self.head],
            ),
            ("mlp.down_proj.weight", "ffn_down.weight", vec![hidden, ffn]),
        ];
        if self.kind == Kind::Phi3 {
            let rows = (self.heads + 2 * self.kv_heads) * self.head;
            plain.push((
                "self_attn.qkv_proj.weight",
                "attn_qkv.weight",
                vec![rows, hidden],
            ));
            plain.push((
                "mlp.gate_up_proj.weight",
                "ffn_up.weight",
                vec![2 * ffn, hidden],
            ));
        } else {
            plain.push(("mlp.gate_proj.weight", "ffn_gate.weight", vec![ffn, hidden]));
            plain.push(("mlp.up_proj.weight", "ffn_up.weight", vec![ffn, hidden]));
            self.projections(assembly, model, layer, out)?;
        }
        for (to, from, shape) in plain {
            assembly.whole(out, (target(to), &stored(from)), &shape)?;
        }
        for (to, from, width) in self.norms() {
            self.norm(assembly, (target(to), &stored(from)), width, out)?;
        }
        Ok(())
    }

    /// Adds query, key and value of one layer, stored separately.
    fn projections(
        &self,
        assembly: &mut Assembly<'_, '_>,
        model: &str,
        layer: usize,
        out: &mut Tensors,
    ) -> Result<()> {
        let target = |rest: &str| format!("{model}.layers.{layer}.self_attn.{rest}");
        let stored = |rest: &str| format!("blk.{layer}.{rest}");
        for (letter, heads) in [
            ("q", self.heads),
            ("k", self.kv_heads),
            ("v", self.kv_heads),
        ] {
            let rows = heads * self.head;
            let shape = [rows, self.hidden];
            let to = target(&format!("{letter}_proj.weight"));
            let from = stored(&format!("attn_{letter}.weight"));
            if self.kind == Kind::Llama && letter != "v" {
                assembly.unpermuted(out, (to, &from), shape, self.head)?;
            } else {
                assembly.whole(out, (to, &from), &shape)?;
            }
            if self.kind == Kind::Qwen2 {
                let to = target(&format!("{letter}_proj.bias"));
                let from = stored(&format!("attn_{letter}.bias"));
                assembly.whole(out, (to, &from), &[rows])?;
            }
        }
        Ok(())
    }

    /// Returns the RoPE scaling of Llama 3.1. GGUF keeps only the divisor of each frequency: one
    /// set of factors for sequences of any length.
    fn rope_factors(&self, assembly: &mut Assembly<'_, '_>) -> Result<Option<Json>> {
        const TENSOR: &str = "rope_freqs.weight";
        if self.kind != Kind::Llama || !assembly.has(TENSOR) {
            return Ok(None);
        }
        let factors = assembly.values(TENSOR, self.head / 2)?;
        Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
        })))
    }

    /// Returns the config fields that all these models share.
    pub(super) fn config(&self, vocabulary: &Vocabulary<'_>) -> Object<String, Json> {
        let mut config = Object::new();
        if let Some(id) = vocabulary.bos {
            config.insert("bos_token_id".into(), json!(id));
        }
        if let Some(id) = vocabulary.eos {
            config.insert("eos_token_id".into(), json!(id));
        }
        config.insert("hidden_act".into(), json!("silu"));
        config.insert("hidden_size".into(), json!(self.hidden));
        config.insert("intermediate_size".into(), json!(self.feed_forward));
        config.insert("max_position_embeddings".into(), json!(self.context));
        config.insert("num_attention_heads".into(), json!(self.heads));
        config.insert("num_hidden_layers".into(), json!(self.layers));
        config.insert("num_key_value_heads".into(), json!(self.kv_heads));
        config.insert("rms_norm_eps".into(), json!(self.rms_eps));
        config.insert("rope_theta".into(), json!(self.rope_theta));
        config.insert("tie_word_embeddings".into(), json!(self.tied));
        config.insert("vocab_size".into(), json!(self.vocab.0));
        // The class of Qwen3 has a size of its own for heads.
        if self.head * self.heads != self.hidden || self.kind == Kind::Qwen3 {
            config.insert("head_dim".into(), json!(self.head));
        }
        config
    }
}

/// Positions that the model takes. Which layers have a sliding window is only known for Phi-3, all of
/// them, and Gemma 3. For other models the context ends where a token no longer sees all tokens before it.
fn context(header: &Header<'_>, arch: &str, kind: Kind) -> Result<usize> {
    let context = header.need_size(&format!("{arch}.context_length"))?;
    match header.size(&format!("{arch}.attention.sliding_window"))? {
        Some(window)
            if window > 0 && window < context && !matches!(kind, Kind::Phi3 | Kind::Gemma3) =>
        {
            log::warn!(
                "{}: it is not known which layers have the sliding window; the context ends at the \
                 window's {window} tokens instead of {context}",
                header.file
            );
            Ok(window)
        }
        _ => Ok(context),
    }
}

/// Reads the tensors and the config of a text-only model.
pub(super) fn read(
    assembly: &mut Assembly<'_, '_>,
    arch: &str,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Json> {
    let (kind, model_type, class) = match arch {
        "llama" => (Kind::Llama, "llama", "LlamaForCausalLM"),
        "qwen2" => (Kind::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        "qwen3" => (Kind::Qwen3, "qwen3", "Qwen3ForCausalLM"),
        "gemma3" => (Kind::Gemma3, "gemma3_text", "Gemma3ForCausalLM"),
        _ => (Kind::Phi3, "phi3", "Phi3ForCausalLM"),
    };
    let model = TextModel::read(assembly, arch, kind)?;
    model.tensors(assembly, Names::TOP, out)?;
    let mut config = model.config(vocabulary);
    config.insert("architectures".into(), json!([class]));
    config.insert("model_type".into(), json!(model_type));
    if kind == Kind::Gemma3 {
        gemma3_fields(assembly.header, &model, &mut config)?;
    }
    if kind == Kind::Phi3 {
        phi3_rope(assembly, &model, &mut config)?;
    } else if let Some(scaling) = rope_scaling(assembly.header, arch)? {
        config.insert("rope_scaling".into(), scaling);
    } else if let Some(scaling) = model.rope_factors(assembly)? {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(config.into())
}

/// Returns `rope_scaling` of the config, if positions are scaled.
pub(super) fn rope_scaling(header: &Header<'_>, arch: &str) -> Result<Option<Json>> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    match header.text(&key("type"))? {
        None | Some("none") => {
            // The first files have only a factor.
            let factor = header.number(&format!("{arch}.rope.scale_linear"))?;
            let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
            Ok(factor.map(|factor| json!({"type": "linear", "factor": factor})))
        }
        Some(kind @ ("linear" | "yarn")) => {
            let factor = header.need_number(&key("factor"))?;
            let mut scaling = json!({"type": kind, "factor": factor});
            if let Some(length) = header.size(&key("original_context_length"))? {
                scaling["original_max_position_embeddings"] = json!(length);
            }
            Ok(Some(scaling))
        }
        // The factors are tensors.
        Some("longrope") if arch == "phi3" => Ok(None),
        Some(other) => Err(SourceError::Unsupported {
            file: header.file.clone(),
            what: key("type"),
            found: other.into(),
            supported: "none, linear, yarn, and longrope for phi3".into(),
        }),
    }
}

/// Adds the fields of Gemma 3. The scale of attention scores is not in the file; the 27B model, with
/// 62 layers, is the only one in which it does not follow from the size of a head.
pub(super) fn gemma3_fields(
    header: &Header<'_>,
    model: &TextModel,
    config: &mut Object<String, Json>,
) -> Result<()> {
    let scalar = match model.layers {
        62 => model.hidden / model.heads,
        _ => model.head,
    };
    let local_theta = header.number("gemma3.rope.freq_base_swa")?;
    let window = header.need_size("gemma3.attention.sliding_window")?;
    let period = header.size("gemma3.attention.sliding_window_pattern")?;
    config.remove("hidden_act");
    for (key, value) in [
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("query_pre_attn_scalar", json!(scalar)),
        (
            "rope_local_base_freq",
            json!(local_theta.unwrap_or(10_000.0)),
        ),
        ("sliding_window", json!(window)),
        ("sliding_window_pattern", json!(period.unwrap_or(6))),
    ] {
        config.insert(key.into(), value);
    }
    Ok(())
}

/// Adds Phi-3's window and its LongRoPE factors, which GGUF keeps as tensors.
fn phi3_rope(
    assembly: &mut Assembly<'_, '_>,
    model: &TextModel,
    config: &mut Object<String, Json>,
) -> Result<()> {
    let header = assembly.header;
    const TYPE: &str = "phi3.rope.scaling.type";
    if let Some(kind) = header.text(TYPE)?
        && !["none", "longrope"].contains(&kind)
    {
        return Err(SourceError::Unsupported {
            file: header.file.clone(),
            what: TYPE.into(),
            found: kind.into(),
            supported: "none, longrope".into(),
        });
    }
    let original = header
        .size("phi3.rope.scaling.original_context_length")?
        .unwrap_or(model.context);
    config.insert("original_max_position_embeddings".into(), json!(original));
    match header.size("phi3.attention.sliding_window")? {
        None | Some(0) => None,
        Some(window) => config.insert("sliding_window".into(), json!(window)),
    };
    let rotated = header
        .size("phi3.rope.dimension_count")?
        .unwrap_or(model.head);
    if rotated != model.head {
        let part = rotated as f64 / model.head as f64;
        config.insert("partial_rotary_factor".into(), json!(part));
    }
    let mut scaling = rope_scaling(header, "phi3")?;
    if assembly.has("rope_factors_long.weight") {
        let long = assembly.values("rope_factors_long.weight", rotated / 2)?;
        let short = assembly.values("rope_factors_short.weight", rotated / 2)?;
        let mut factors = json!({"long_factor": long, "short_factor": short, "type": "longrope"});
        if let Some(factor) = header.number("phi3.rope.scaling.attn_factor")? {
            factors["attention_factor"] = json!(factor);
        }
        scaling = Some(factors);
    }
    if let Some(scaling) = scaling {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}
