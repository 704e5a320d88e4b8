//! Qwen3.5: architecture `qwen35` with the projector `qwen3vl_merger`.
//!
//! Names and layout of the result: `Qwen/Qwen3.5-0.8B` on the hub. llama.cpp stores the value heads of
//! a delta rule in another order, decay rates in place of their logarithms, and the scales of norms
//! plus 1, except for the norm within a delta rule.

use serde_json::{Map as Object, Value as Json, json};

use super::super::error::{Result, malformed};
use super::super::view::Tiles;
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::qwen2_vl::rope_sections;
use super::qwen3_vl::read_tower;
use super::vocabulary::Vocabulary;

const TEXT: &str = "model.language_model";

/// Reads tensors, config and preprocessor configs.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let inner = "clip.vision.is_deepstack_layers";
    let inner = vision.header.true_indices(inner)?.unwrap_or_default();
    if !inner.is_empty() {
        return Err(malformed(
            &vision.header.file,
            format!("features of {} inner blocks", inner.len()),
            "none: Qwen3.5 has no features for deeper layers",
        ));
    }
    let model = Qwen35::read(text)?;
    model.tensors(text, out)?;
    let tower = read_tower(vision, ("qwen3_5", model.hidden), &[], out)?;
    let config = model.config(text.header, vocabulary)?;
    let names = ("Qwen3_5ForConditionalGeneration", "qwen3_5");
    tower.configs(names, vocabulary, config.into())
}

/// Sizes of the language model, from the metadata.
struct Qwen35 {
    hidden: usize,
    feed_forward: usize,
    vocabulary: usize,
    /// Layers without those that predict further tokens.
    layers: usize,
    /// Layers that predict further tokens.
    further: usize,
    /// Every layer whose number, counted from 1, is a multiple of it is attention.
    interval: usize,
    heads: usize,
    kv_heads: usize,
    /// Elements of a head of attention, and how many of them are rotated.
    head: usize,
    rotated: usize,
    delta: Delta,
    tied: bool,
}

/// Sizes of a delta rule.
struct Delta {
    key_heads: usize,
    /// Value heads of a key head.
    per_key: usize,
    key_dim: usize,
    value_dim: usize,
    taps: usize,
}

impl Delta {
    fn read(header: &Header<'_>) -> Result<Self> {
        let key_heads = header.need_size("qwen35.ssm.group_count")?;
        let value_heads = header.need_size("qwen35.ssm.time_step_rank")?;
        let inner = header.need_size("qwen35.ssm.inner_size")?;
        if !value_heads.is_multiple_of(key_heads) || !inner.is_multiple_of(value_heads) {
            return Err(malformed(
                &header.file,
                format!("{inner} elements in {value_heads} value heads for {key_heads} key heads"),
                "value heads of equal size, the same number for every key head",
            ));
        }
        Ok(Self {
            key_heads,
            per_key: value_heads / key_heads,
            key_dim: header.need_size("qwen35.ssm.state_size")?,
            value_dim: inner / value_heads,
            taps: header.need_size("qwen35.ssm.conv_kernel")?,
        })
    }

    fn value_heads(&self) -> usize {
        self.key_heads * self.per_key
    }

    /// Returns the width of all value heads.
    fn values(&self) -> usize {
        self.value_heads() * self.value_dim
    }

    /// Returns the width of all queries and keys.
    fn queries_and_keys(&self) -> usize {
        2 * self.key_heads * self.key_dim
    }

    /// Returns the place of value heads of `block` rows of `row` elements after `first` other rows.
    fn tiles(&self, [first, block]: [usize; 2], row: usize) -> Tiles {
        Tiles {
            // Sizes that are too large do not match those of the tensor.
            first: first.saturating_mul(row),
            block: block.saturating_mul(row),
            groups: self.key_heads,
            per_group: self.per_key,
        }
    }

    /// Adds the tensors of a delta rule with inputs of `hidden` elements.
    fn tensors(
        &self,
        assembly: &mut Assembly<'_, '_>,
        (to, from): (&str, &str),
        hidden: usize,
        out: &mut Tensors,
    ) -> Result<()> {
        let to = |rest: &str| format!("{to}.linear_attn.{rest}");
        let from = |rest: &str| format!("{from}.{rest}");
        let (heads, values, before) = (self.value_heads(), self.values(), self.queries_and_keys());
        let width = before + values;
        for (name, stored, shape, place) in [
            (
                "in_proj_qkv.weight",
                "attn_qkv.weight",
                [width, hidden],
                [before, self.value_dim],
            ),
            (
                "in_proj_z.weight",
                "attn_gate.weight",
                [values, hidden],
                [0, self.value_dim],
            ),
            (
                "in_proj_a.weight",
                "ssm_alpha.weight",
                [heads, hidden],
                [0, 1],
            ),
            (
                "in_proj_b.weight",
                "ssm_beta.weight",
                [heads, hidden],
                [0, 1],
            ),
        ] {
            let names = (to(name), &*from(stored));
            let tiles = self.tiles(place, hidden);
            assembly.untiled(out, names, (&shape, &shape), tiles)?;
        }
        let names = (to("conv1d.weight"), &*from("ssm_conv1d.weight"));
        let shapes = (&[width, self.taps][..], &[width, 1, self.taps][..]);
        let tiles = self.tiles([before, self.value_dim], self.taps);
        assembly.untiled(out, names, shapes, tiles)?;
        let names = (to("out_proj.weight"), &*from("ssm_out.weight"));
        let shape = [hidden, values];
        assembly.untiled(
            out,
            names,
            (&shape, &shape),
            self.tiles([0, self.value_dim], 1),
        )?;
        let names = (to("dt_bias"), &*from("ssm_dt.bias"));
        assembly.untiled(out, names, (&[heads], &[heads]), self.tiles([0, 1], 1))?;
        let names = (to("A_log"), &*from("ssm_a"));
        assembly.decay_logs(out, names, self.tiles([0, 1], 1))?;
        let names = (to("norm.weight"), &*from("ssm_norm.weight"));
        assembly.whole(out, names, &[self.value_dim])
    }
}

impl Qwen35 {
    fn read(assembly: &Assembly<'_, '_>) -> Result<Self> {
        let header = assembly.header;
        let blocks = header.need_size("qwen35.block_count")?;
        let further = header.size("qwen35.nextn_predict_layers")?.unwrap_or(0);
        let Some(layers) = blocks.checked_sub(further).filter(|&layers| layers > 0) else {
            return Err(malformed(
                &header.file,
                format!("{blocks} blocks, {further} of which predict further tokens"),
                "at least one that does not",
            ));
        };
        let interval = header.size("qwen35.full_attention_interval")?.unwrap_or(4);
        if interval == 0 {
            return Err(malformed(
                &header.file,
                "qwen35.full_attention_interval = 0",
                "an integer of at least 1",
            ));
        }
        let head = header.need_size("qwen35.attention.key_length")?;
        let rotated = header.size("qwen35.rope.dimension_count")?;
        let embedding = assembly.shape("token_embd.weight")?;
        Ok(Self {
            hidden: header.need_size("qwen35.embedding_length")?,
            feed_forward: header.need_size("qwen35.feed_forward_length")?,
            vocabulary: embedding.first().copied().unwrap_or(0),
            layers,
            further,
            interval,
            heads: header.need_size("qwen35.attention.head_count")?,
            kv_heads: header.need_size("qwen35.attention.head_count_kv")?,
            head,
            rotated: rotated.unwrap_or(head / 4),
            delta: Delta::read(header)?,
            tied: !assembly.has("output.weight"),
        })
    }

    fn tensors(&self, assembly: &mut Assembly<'_, '_>, out: &mut Tensors) -> Result<()> {
        let table = [self.vocabulary, self.hidden];
        let embedding = (format!("{TEXT}.embed_tokens.weight"), "token_embd.weight");
        assembly.whole(out, embedding, &table)?;
        if !self.tied {
            assembly.whole(out, ("lm_head.weight".into(), "output.weight"), &table)?;
        }
        let norm = (format!("{TEXT}.norm.weight"), "output_norm.weight");
        assembly.shifted(out, norm, self.hidden, -1.0)?;
        for layer in 0..self.layers {
            let names = (&*format!("{TEXT}.layers.{layer}"), &*format!("blk.{layer}"));
            self.feed_forward(assembly, names, out)?;
            match (layer + 1).is_multiple_of(self.interval) {
                true => self.attention(assembly, names, out)?,
                false => self.delta.tensors(assembly, names, self.hidden, out)?,
            }
        }
        self.further(assembly, out)
    }

    /// Adds the layers that predict further tokens, and what their inputs and outputs pass through.
    fn further(&self, assembly: &mut Assembly<'_, '_>, out: &mut Tensors) -> Result<()> {
        for number in 0..self.further {
            let block = self.layers + number;
            let names = (&*format!("mtp.layers.{number}"), &*format!("blk.{block}"));
            self.feed_forward(assembly, names, out)?;
            self.attention(assembly, names, out)?;
        }
        if self.further == 0 {
            return Ok(());
        }
        let hidden = self.hidden;
        let from = |rest: &str| format!("blk.{}.nextn.{rest}.weight", self.layers);
        let joined = ("mtp.fc.weight".to_owned(), &*from("eh_proj"));
        assembly.whole(out, joined, &[hidden, 2 * hidden])?;
        for (to, stored) in [
            ("pre_fc_norm_embedding", "enorm"),
            ("pre_fc_norm_hidden", "hnorm"),
            ("norm", "shared_head_norm"),
        ] {
            let names = (format!("mtp.{to}.weight"), &*from(stored));
            assembly.shifted(out, names, hidden, -1.0)?;
        }
        Ok(())
    }

    /// Adds the norms and the MLP of a layer.
    fn feed_forward(
        &self,
        assembly: &mut Assembly<'_, '_>,
        (to, from): (&str, &str),
        out: &mut Tensors,
    ) -> Result<()> {
        let (hidden, inner) = (self.hidden, self.feed_forward);
        for (name, stored) in [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
        ] {
            let names = (
                format!("{to}.{name}.weight"),
                &*format!("{from}.{stored}.weight"),
            );
            assembly.shifted(out, names, hidden, -1.0)?;
        }
        for (name, stored, shape) in [
            ("gate_proj", "ffn_gate", [inner, hidden]),
            ("up_proj", "ffn_up", [inner, hidden]),
            ("down_proj", "ffn_down", [hidden, inner]),
        ] {
            let names = (
                format!("{to}.mlp.{name}.weight"),
                &*format!("{from}.{stored}.weight"),
            );
            assembly.whole(out, names, &shape)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        assembly: &mut Assembly<'_, '_>,
        (to, from): (&str, &str),
        out: &mut Tensors,
    ) -> Result<()> {
        let to = |name: &str| format!("{to}.self_attn.{name}.weight");
        let from = |name: &str| format!("{from}.{name}.weight");
        let (hidden, queries) = (self.hidden, self.heads * self.head);
        let keys = self.kv_heads * self.head;
        for (name, stored, shape) in [
            // The queries and the gates of the outputs.
            ("q_proj", "attn_q", [2 * queries, hidden]),
            ("k_proj", "attn_k", [keys, hidden]),
            ("v_proj", "attn_v", [keys, hidden]),
            ("o_proj", "attn_output", [hidden, queries]),
        ] {
            assembly.whole(out, (to(name), &from(stored)), &shape)?;
        }
        for (name, stored) in [("q_norm", "attn_q_norm"), ("k_norm", "attn_k_norm")] {
            assembly.shifted(out, (to(name), &from(stored)), self.head, -1.0)?;
        }
        Ok(())
    }

    fn config(
        &self,
        header: &Header<'_>,
        vocabulary: &Vocabulary<'_>,
    ) -> Result<Object<String, Json>> {
        let theta = header.number("qwen35.rope.freq_base")?;
        let mut rope = rope_sections(header, "qwen35")?;
        rope["rope_theta"] = json!(theta.unwrap_or(10_000.0));
        rope["partial_rotary_factor"] = json!(self.rotated as f64 / self.head as f64);
        let eps = header.need_number("qwen35.attention.layer_norm_rms_epsilon")?;
        let fields = [
            ("model_type", json!("qwen3_5_text")),
            ("attention_bias", json!(false)),
            ("attn_output_gate", json!(true)),
            ("hidden_act", json!("silu")),
            ("hidden_size", json!(self.hidden)),
            ("intermediate_size", json!(self.feed_forward)),
            ("num_hidden_layers", json!(self.layers)),
            ("num_attention_heads", json!(self.heads)),
            ("num_key_value_heads", json!(self.kv_heads)),
            ("head_dim", json!(self.head)),
            ("rms_norm_eps", json!(eps)),
            ("linear_num_key_heads", json!(self.delta.key_heads)),
            ("linear_num_value_heads", json!(self.delta.value_heads())),
            ("linear_key_head_dim", json!(self.delta.key_dim)),
            ("linear_value_head_dim", json!(self.delta.value_dim)),
            ("linear_conv_kernel_dim", json!(self.delta.taps)),
            ("full_attention_interval", json!(self.interval)),
            (
                "max_position_embeddings",
                json!(header.need_size("qwen35.context_length")?),
            ),
            ("mtp_num_hidden_layers", json!(self.further)),
            ("rope_parameters", rope),
            ("tie_word_embeddings", json!(self.tied)),
            ("vocab_size", json!(self.vocabulary)),
        ];
        let mut config: Object<String, Json> = fields
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect();
        for (key, id) in [
            ("bos_token_id", vocabulary.bos),
            ("eos_token_id", vocabulary.eos),
        ] {
            if let Some(id) = id {
                config.insert(key.into(), json!(id));
            }
        }
        Ok(config)
    }
}
