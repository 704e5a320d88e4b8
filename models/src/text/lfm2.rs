//! The language model of LFM2 (Liquid AI 2025, <https://arxiv.org/abs/2511.23404>): layers of gated short
//! convolutions, and some of grouped-query attention with normalized queries and keys, each followed by
//! a gated MLP. The reference is `modeling_lfm2.py` of `transformers`.

use std::any::Any;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, CacheShape, Heads, KernelBackend, probe, short_conv, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, RecurrentState, StepInput};
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::preprocess::settings::without_nulls;
use crate::reduce::anchors::RotaryMeans;
use crate::sizes::{self, Section};
use crate::text::rope_fields::RopeFields;
use crate::text::rotary::{
    DEFAULT_KIND, RotaryTable, inverse_frequencies, rotary_means, scaling_kind,
};
use crate::text::step::{Place, Recurrences, finish, run_mixed};
use crate::weights::{Part, Scope};

/// Sizes of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Lfm2Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// For each layer, whether it is attention; otherwise a convolution.
    pub attention: Vec<bool>,
    /// Query and key-value heads.
    pub heads: Heads,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Context length.
    pub context_length: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Tokens that a convolution reads, its own included.
    pub taps: usize,
    /// `true` if the embedding table is also the output head.
    pub tied: bool,
}

/// The section of `config.json`; some files have older names.
#[derive(Debug, Deserialize)]
struct Fields {
    hidden_size: usize,
    intermediate_size: usize,
    block_ff_dim: Option<usize>,
    block_auto_adjust_ff_dim: bool,
    block_ffn_dim_multiplier: Option<f64>,
    block_multiple_of: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    norm_eps: f64,
    #[serde(rename = "conv_L_cache")]
    taps: usize,
    conv_bias: bool,
    layer_types: Option<Vec<String>>,
    full_attn_idxs: Option<Vec<usize>>,
    tie_word_embeddings: Option<bool>,
    tie_embedding: Option<bool>,
}

impl Lfm2Config {
    /// Reads the section, with the defaults of the reference.
    ///
    /// # Errors
    /// If a field has the wrong type or a value that is not supported.
    pub fn parse(section: &Value) -> Result<Self, ModelError> {
        let mut merged = json!({
            "vocab_size": 65_536, "hidden_size": 2560, "intermediate_size": 12_288,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 128_000, "norm_eps": 1e-5, "conv_bias": false,
            "conv_L_cache": 3, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": true,
        });
        let given = without_nulls(section);
        for (key, value) in given.as_object().into_iter().flatten() {
            merged[key.as_str()] = value.clone();
        }
        let rope = RopeFields::read(&given, 1e6)?;
        let kind = scaling_kind(rope.scaling.as_ref().unwrap_or(&Value::Null))?;
        if kind != DEFAULT_KIND {
            return Err(ModelError::config(format!(
                "text_config: rope scaling of type {kind:?} is not supported, expected \
                 {DEFAULT_KIND:?}"
            )));
        }
        let fields: Fields = serde_json::from_value(merged)
            .map_err(|error| ModelError::config(format!("config.json: text_config: {error}")))?;
        fields.check()?;
        let heads = Heads {
            heads: fields.num_attention_heads,
            kv_heads: fields.num_key_value_heads,
            head_dim: fields.hidden_size / fields.num_attention_heads,
        };
        let config = Self {
            intermediate_size: fields.feed_forward(),
            attention: fields.attention()?,
            heads,
            hidden_size: fields.hidden_size,
            vocabulary: fields.vocab_size,
            context_length: fields.max_position_embeddings,
            norm_eps: fields.norm_eps,
            rope_theta: rope.theta,
            taps: fields.taps,
            tied: fields
                .tie_word_embeddings
                .or(fields.tie_embedding)
                .unwrap_or(true),
        };
        Section("text_config").sizes(&[("feed-forward", config.intermediate_size, sizes::FFN)])?;
        Ok(config)
    }
}

impl Fields {
    fn check(&self) -> Result<(), ModelError> {
        let section = Section("text_config");
        section.sizes(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            (
                "num_attention_heads",
                self.num_attention_heads,
                sizes::HEADS,
            ),
            (
                "num_key_value_heads",
                self.num_key_value_heads,
                sizes::HEADS,
            ),
            ("vocab_size", self.vocab_size, sizes::VOCABULARY),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                sizes::POSITIONS,
            ),
            ("conv_L_cache", self.taps, 64),
            ("block_multiple_of", self.block_multiple_of, sizes::FFN),
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return Err(ModelError::config(format!(
                "text_config: {} attention heads are not divisible by {} key-value heads",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if !(self.hidden_size / self.num_attention_heads).is_multiple_of(2) {
            return Err(ModelError::config(
                "text_config: the size of a head is odd, rotary embeddings require an even size",
            ));
        }
        if self.conv_bias {
            return Err(ModelError::config(
                "text_config.conv_bias is true, expected false: such models are not supported",
            ));
        }
        Ok(())
    }

    /// Returns the width of the MLP, which files may give before its adjustment.
    fn feed_forward(&self) -> usize {
        let width = self.block_ff_dim.unwrap_or(self.intermediate_size);
        if !self.block_auto_adjust_ff_dim {
            return width;
        }
        let multiplier = self.block_ffn_dim_multiplier.unwrap_or(1.0);
        // Saturates; sizes out of range are refused by the caller.
        let width = (multiplier * (width.saturating_mul(2) / 3) as f64) as usize;
        let adjusted = width.checked_next_multiple_of(self.block_multiple_of);
        adjusted.unwrap_or(usize::MAX)
    }

    fn attention(&self) -> Result<Vec<bool>, ModelError> {
        let layers = self.num_hidden_layers;
        let attention: Vec<bool> = match (&self.layer_types, &self.full_attn_idxs) {
            (Some(types), _) => {
                let known = ["conv", "full_attention"];
                if let Some(other) = types.iter().find(|kind| !known.contains(&kind.as_str())) {
                    return Err(ModelError::config(format!(
                        "text_config.layer_types has {other:?}, expected \"conv\" or \
                         \"full_attention\""
                    )));
                }
                types.iter().map(|kind| kind == "full_attention").collect()
            }
            (None, Some(places)) => (0..layers).map(|layer| places.contains(&layer)).collect(),
            (None, None) => vec![true; layers],
        };
        if attention.len() != layers || !attention.contains(&true) {
            return Err(ModelError::config(format!(
                "text_config.layer_types has {} layers, {} of them attention; expected \
                 num_hidden_layers {layers} and at least one with attention",
                attention.len(),
                attention.iter().filter(|&&is| is).count()
            )));
        }
        Ok(attention)
    }
}

/// The language model.
#[derive(Module, Debug)]
pub struct Lfm2<B: KernelBackend> {
    embedding: Embedding<B>,
    layers: Vec<Layer<B>>,
    norm: RmsNorm<B>,
    head: Option<Linear<B>>,
    #[module(skip)]
    config: Lfm2Config,
}

impl<B: KernelBackend> Lfm2<B> {
    /// Declares the weights under `text` of the record; `model` is their prefix in the checkpoint.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(
        config: Lfm2Config,
        model: &str,
        root: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let scope = root.part(Part::Text).child("text", "");
        let inner = scope.child("", model);
        let hidden = config.hidden_size;
        let tokens = scope.dimension("vocabulary", config.vocabulary)?;
        let layer = |(i, &is_attention): (usize, &bool)| {
            let layer = inner.child(&format!("layers.{i}"), &format!("layers.{i}"));
            Layer::init(&config, is_attention, &layer)
        };
        let head = || {
            let normed = scope.normed("norm", hidden);
            scope.linear("head", &[("lm_head", &tokens)], normed, false)
        };
        Ok(Self {
            embedding: inner.embedding(
                "embedding",
                "embed_tokens",
                &tokens,
                hidden,
                config.tied,
            )?,
            layers: (config.attention.iter().enumerate().map(layer)).collect::<Result<_, _>>()?,
            norm: inner.rms_norm("norm", "embedding_norm", hidden, config.norm_eps),
            head: (!config.tied).then(head).transpose()?,
            config,
        })
    }

    /// Returns the number of layers with attention, which the cache holds.
    fn cached(&self) -> usize {
        self.config.attention.iter().filter(|&&is| is).count()
    }
}

/// State of a convolution.
struct Tail<B: KernelBackend> {
    /// The last products of gate and input, `[taps - 1, hidden_size]`.
    last: Tensor<B, 2>,
    /// Those before the last step and of its tokens, if it is revisable:
    /// `[taps - 1 + tokens, hidden_size]`.
    step: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Tail<B> {
    fn new(last: Tensor<B, 2>) -> Self {
        Self { last, step: None }
    }
}

impl<B: KernelBackend> RecurrentState for Tail<B> {
    fn bytes(&self) -> usize {
        let tensors = self.step.iter().chain([&self.last]);
        let elements: usize = tensors.map(|tensor| tensor.shape().num_elements()).sum();
        elements * size_of::<f32>()
    }

    fn fork(&self) -> Box<dyn RecurrentState> {
        Box::new(Self::new(self.last.clone()))
    }

    fn revised(&self, tokens: usize) -> Option<Box<dyn RecurrentState>> {
        let (step, [count, _]) = (self.step.as_ref()?, self.last.dims());
        // burn does not cut out empty tensors.
        let last = match count {
            0 => self.last.clone(),
            _ => step.clone().narrow(0, tokens, count),
        };
        Some(Box::new(Self::new(last)))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl<B: KernelBackend> LanguageModel<B> for Lfm2<B> {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }

    fn cache_shape(&self, capacity: usize) -> CacheShape {
        let mut attention = self
            .layers
            .iter()
            .filter_map(|layer| layer.attention.as_ref());
        CacheShape {
            layers: self.cached(),
            kv_heads: self.config.heads.kv_heads,
            head_dim: self.config.heads.head_dim,
            capacity,
            quantized: attention.all(|attention| attention.qkv.is_quantized()),
        }
    }

    fn rotary_means(&self, positions: &[Position]) -> Option<Vec<RotaryMeans>> {
        let heads = self.config.heads;
        let frequencies = inverse_frequencies(self.config.rope_theta, heads.head_dim);
        let angle = |position: Position, i: usize| position[0] as f32 * frequencies[i];
        rotary_means(positions, frequencies.len(), angle)
    }

    fn recurrent_states(&self, device: &B::Device) -> Vec<Box<dyn RecurrentState>> {
        let shape = [self.config.taps - 1, self.config.hidden_size];
        let tail = |_| Box::new(Tail::<B>::new(Tensor::zeros(shape, device))) as Box<_>;
        (self.cached()..self.layers.len()).map(tail).collect()
    }

    fn recurrent_bytes(&self) -> usize {
        let layers = self.layers.len() - self.cached();
        layers * (self.config.taps - 1) * self.config.hidden_size * size_of::<f32>()
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        self.embedding.forward(ids)
    }

    fn step(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let heads = self.config.heads;
        let frequencies = inverse_frequencies(self.config.rope_theta, heads.head_dim);
        let angle = |token: usize, i: usize| input.positions[token][0] as f32 * frequencies[i];
        let device = input.embeddings.device();
        let table = RotaryTable::new(input.len(), frequencies.len(), 1.0, angle, &device);
        let x = run_mixed(&input, &self.layers, state, monitor, {
            |layer: &Layer<B>, x, cache, tails: &mut Recurrences<'_, Tail<B>>, place| {
                let normed = layer.operator_norm.forward(x.clone());
                let x = match (&layer.attention, &layer.conv) {
                    (Some(attention), _) => {
                        attention.forward(normed, x, (&table, heads), cache, place)
                    }
                    (None, Some(conv)) => {
                        let mixed = tails.update(|tail, first| {
                            conv.forward(normed, tail, (first, input.revisable))
                        });
                        let (mixed, x) = place.used_rows(mixed, x);
                        x + mixed
                    }
                    (None, None) => x,
                };
                layer.mlp(x)
            }
        })?;
        Ok(finish(|x| self.norm.forward(x), x))
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let _head = stage::scope(format_args!("text"));
        let _stage = stage::module("head");
        match &self.head {
            Some(head) => head.forward(hidden),
            None => self.embedding.as_linear(hidden),
        }
    }
}

/// A layer: attention or a convolution, and an MLP.
#[derive(Module, Debug)]
struct Layer<B: KernelBackend> {
    operator_norm: RmsNorm<B>,
    attention: Option<Attention<B>>,
    conv: Option<ShortConv<B>>,
    mlp_norm: RmsNorm<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> Layer<B> {
    fn init(
        config: &Lfm2Config,
        is_attention: bool,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let (hidden, eps) = (config.hidden_size, config.norm_eps);
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        let attention = || Attention::init(config, scope);
        let conv = || ShortConv::init(config, scope);
        let mlp = scope.child("", "feed_forward");
        Ok(Self {
            operator_norm: scope.rms_norm("operator_norm", "operator_norm", hidden, eps),
            attention: is_attention.then(attention).transpose()?,
            conv: (!is_attention).then(conv).transpose()?,
            mlp_norm: scope.rms_norm("mlp_norm", "ffn_norm", hidden, eps),
            gate_up: mlp.linear(
                "gate_up",
                &[("w1", &ffn), ("w3", &ffn)],
                scope.normed("mlp_norm", hidden),
                false,
            )?,
            down: mlp.linear("down", &[("w2", hidden)], gated, false)?,
        })
    }

    fn mlp(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        self.gate_up
            .gated_feed_forward(normed, Activation::Silu, &self.down, Some(x))
    }
}

/// Grouped-query attention with normalized queries and keys.
#[derive(Module, Debug)]
struct Attention<B: KernelBackend> {
    qkv: Linear<B>,
    q_norm: RmsNorm<B>,
    k_norm: RmsNorm<B>,
    out: Linear<B>,
}

impl<B: KernelBackend> Attention<B> {
    fn init(config: &Lfm2Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (hidden, eps) = (config.hidden_size, config.norm_eps);
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = config.heads;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let normed = scope.normed("operator_norm", hidden);
        let scope = scope.child("attention", "self_attn");
        let attended = scope.repeated("qkv", queries + keys, queries, head_dim, heads / kv_heads);
        Ok(Self {
            qkv: scope.linear(
                "qkv",
                &[("q_proj", queries), ("k_proj", keys), ("v_proj", keys)],
                normed,
                false,
            )?,
            q_norm: scope.rms_norm("q_norm", "q_layernorm", head_dim, eps),
            k_norm: scope.rms_norm("k_norm", "k_layernorm", head_dim, eps),
            out: scope.linear("out", &[("out_proj", hidden)], attended, false)?,
        })
    }

    /// Adds attention over `normed` to the residual `x`.
    fn forward(
        &self,
        normed: Tensor<B, 2>,
        x: Tensor<B, 2>,
        (table, heads): (&RotaryTable<B>, Heads),
        cache: &mut B::KvCache,
        place: Place<'_>,
    ) -> Tensor<B, 2> {
        let _stage = stage::module("attention");
        let qkv = self.qkv.forward(normed);
        let [tokens, width] = qkv.dims();
        let keys = heads.heads * heads.head_dim;
        let values = keys + heads.kv_heads * heads.head_dim;
        let part = |from: usize, to: usize| qkv.clone().slice([0..tokens, from..to]);
        let q = self.q_norm.forward_heads(part(0, keys), heads.head_dim);
        let k = self
            .k_norm
            .forward_heads(part(keys, values), heads.head_dim);
        let qkv = Tensor::cat(vec![q, k, part(values, width)], 1);
        let scale = crate::text::step::scale(heads);
        let attended = table.attend(qkv, heads, cache, place.layer, place.visible, scale);
        place.close_attention(&self.out, attended, x)
    }
}

/// A gated causal convolution over a few tokens, each channel on its own.
#[derive(Module, Debug)]
struct ShortConv<B: KernelBackend> {
    input: Linear<B>,
    kernel: Param<Tensor<B, 2>>,
    out: Linear<B>,
}

impl<B: KernelBackend> ShortConv<B> {
    fn init(config: &Lfm2Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let normed = scope.normed("operator_norm", hidden);
        let scope = scope.child("conv", "conv");
        // The second third of the outputs is a factor of the inputs of the last layer.
        let gated = scope.produced("input", hidden, hidden);
        Ok(Self {
            input: scope.linear("input", &[("in_proj", 3 * hidden)], normed, false)?,
            kernel: scope.matrix("kernel", "conv.weight", hidden, config.taps),
            out: scope.linear("out", &[("out_proj", hidden)], gated, false)?,
        })
    }

    /// Returns the outputs, and the state after the last token. `captured` captures the outputs. The
    /// state of a `revisable` step keeps what [`RecurrentState::revised`] needs.
    ///
    /// # Shapes
    /// - x and outputs: `[tokens, hidden_size]`
    fn forward(
        &self,
        x: Tensor<B, 2>,
        tail: &Tail<B>,
        (captured, revisable): (bool, bool),
    ) -> (Tensor<B, 2>, Tail<B>) {
        let _stage = stage::module("conv");
        let projected = self.input.forward(x);
        let [tokens, width] = projected.dims();
        let hidden = width / 3;
        let part = |i: usize| {
            let columns = i * hidden..(i + 1) * hidden;
            projected.clone().slice([0..tokens, columns])
        };
        let (products, kernel) = (part(0) * part(2), self.kernel.val());
        let step = revisable.then(|| match tail.last.dims() {
            [0, _] => products.clone(),
            _ => Tensor::cat(vec![tail.last.clone(), products.clone()], 0),
        });
        let (sums, last) = short_conv(products, tail.last.clone(), kernel, Activation::None);
        let out = self.out.forward(part(1) * sums);
        if captured {
            probe::capture("conv_out", &out);
        }
        (out, Tail { last, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feed_forward_is_adjusted() {
        let width = |section: Value| Lfm2Config::parse(&section).unwrap().intermediate_size;
        assert_eq!(width(json!({"block_ff_dim": 6656})), 4608);
        assert_eq!(
            width(json!({"intermediate_size": 250, "block_multiple_of": 32})),
            192
        );
        let whole = json!({"block_ff_dim": 250, "block_auto_adjust_ff_dim": false});
        assert_eq!(width(whole), 250);
    }

    #[test]
    fn settings_that_are_not_supported_are_named() {
        for (section, word) in [
            (json!({"conv_bias": true}), "conv_bias"),
            (
                json!({"num_hidden_layers": 1, "layer_types": ["conv"]}),
                "at least one",
            ),
            (
                json!({"num_hidden_layers": 1, "layer_types": ["mamba"]}),
                "mamba",
            ),
            (
                json!({"num_hidden_layers": 2, "layer_types": ["full_attention"]}),
                "2",
            ),
            (
                json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
                "yarn",
            ),
            (json!({"num_attention_heads": 7}), "heads"),
        ] {
            let error = Lfm2Config::parse(&section).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
