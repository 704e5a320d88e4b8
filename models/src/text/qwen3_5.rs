//! The language model of Qwen3.5 (Qwen Team 2026): three of four layers are a gated delta rule
//! (<https://arxiv.org/abs/2412.06464>), whose state does not grow with the text, the others gated
//! attention; each is followed by a gated MLP. The reference is `modeling_qwen3_5.py` of `transformers`.
//! A further layer drafts tokens.

mod delta;
mod mtp;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use edge_lmm_ops::{Activation, CacheShape, DeltaHeads, Heads, KernelBackend, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, OutputRows, RecurrentState, StepInput};
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::mtp::MtpLayer;
use crate::preprocess::settings::without_nulls;
use crate::reduce::anchors::RotaryMeans;
use crate::sizes::{self, Section};
use crate::text::config::sections;
use crate::text::decoder::interleaved;
use crate::text::rope_fields::RopeFields;
use crate::text::rotary::{RotaryTable, inverse_frequencies, rotary_means};
use crate::text::step::{Place, Recurrences, finish, last_row, run_mixed, scale};
use crate::weights::{Part, Scope};

use self::delta::{DeltaNet, DeltaState};
use self::mtp::Mtp;

/// Sizes of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen35TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// For each layer, whether it is attention; otherwise a gated delta rule.
    pub attention: Vec<bool>,
    /// Query and key-value heads of attention.
    pub heads: Heads,
    /// Heads of the gated delta rule.
    pub delta: DeltaHeads,
    /// Tokens that the convolution before a delta rule reads, its own included.
    pub taps: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Context length.
    pub context_length: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Numbers of rotary frequencies for time, height and width, which take turns. Elements of a head
    /// beyond twice their sum are not rotated.
    pub sections: [usize; 3],
    /// `true` if the embedding table is also the output head.
    pub tied: bool,
    /// `true` if the model has one layer that predicts further tokens, with its embeddings. Other
    /// layers of that kind are not supported.
    pub mtp: bool,
}

/// The fields of `config.json`.
#[derive(Debug, Deserialize)]
struct Fields {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    #[serde(rename = "linear_conv_kernel_dim")]
    taps: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    attn_output_gate: bool,
    layer_types: Option<Vec<String>>,
    full_attention_interval: usize,
    tie_word_embeddings: bool,
    mtp_num_hidden_layers: usize,
    mtp_use_dedicated_embeddings: bool,
}

impl Qwen35TextConfig {
    /// Reads a configuration whose `text_config` is at the top level, with the defaults of the reference.
    ///
    /// # Errors
    /// If a field has the wrong type or a value that is not supported.
    pub fn parse(config: &Value) -> Result<Self, ModelError> {
        let mut merged = json!({
            "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288,
            "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
            "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": false,
            "attn_output_gate": true, "full_attention_interval": 4,
            "tie_word_embeddings": false, "partial_rotary_factor": 0.25,
            "mtp_num_hidden_layers": 0, "mtp_use_dedicated_embeddings": false,
        });
        let given = without_nulls(config);
        for (key, value) in given.as_object().into_iter().flatten() {
            merged[key.as_str()] = value.clone();
        }
        let rope = RopeFields::read(&merged, 1e4)?;
        let fields: Fields = serde_json::from_value(merged)
            .map_err(|error| ModelError::config(format!("config.json: {error}")))?;
        fields.check()?;
        let config = Self {
            attention: fields.attention()?,
            sections: fields.sections(&rope)?,
            heads: Heads {
                heads: fields.num_attention_heads,
                kv_heads: fields.num_key_value_heads,
                head_dim: fields.head_dim,
            },
            delta: DeltaHeads {
                key_heads: fields.linear_num_key_heads,
                value_heads: fields.linear_num_value_heads,
                key_dim: fields.linear_key_head_dim,
                value_dim: fields.linear_value_head_dim,
            },
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            taps: fields.taps,
            vocabulary: fields.vocab_size,
            context_length: fields.max_position_embeddings,
            norm_eps: fields.rms_norm_eps,
            rope_theta: rope.theta,
            tied: fields.tie_word_embeddings,
            mtp: fields.mtp_num_hidden_layers == 1 && !fields.mtp_use_dedicated_embeddings,
        };
        Ok(config)
    }

    /// Returns the angle of each pair of rotated elements at a position, and the number of pairs.
    fn rotary_angles(&self) -> (impl Fn(Position, usize) -> f32, usize) {
        let axes = interleaved(self.sections);
        let pairs = axes.len();
        let frequencies = inverse_frequencies(self.rope_theta, 2 * pairs);
        let angle = move |position: Position, i: usize| position[axes[i]] as f32 * frequencies[i];
        (angle, pairs)
    }

    /// Returns the table for tokens at `positions`.
    fn rotary_table<B: KernelBackend>(
        &self,
        positions: &[Position],
        device: &B::Device,
    ) -> RotaryTable<B> {
        let (angle, pairs) = self.rotary_angles();
        let angle = |token: usize, i: usize| angle(positions[token], i);
        RotaryTable::new(positions.len(), pairs, 1.0, angle, device)
    }

    /// Returns the number of layers with attention, which the cache holds.
    fn cached(&self) -> usize {
        self.attention.iter().filter(|&&is| is).count()
    }
}

impl Fields {
    fn check(&self) -> Result<(), ModelError> {
        let section = Section("");
        let heads = |name, count| (name, count, sizes::HEADS);
        section.sizes(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            heads("num_attention_heads", self.num_attention_heads),
            heads("num_key_value_heads", self.num_key_value_heads),
            heads("head_dim", self.head_dim),
            heads("linear_num_key_heads", self.linear_num_key_heads),
            heads("linear_num_value_heads", self.linear_num_value_heads),
            heads("linear_key_head_dim", self.linear_key_head_dim),
            heads("linear_value_head_dim", self.linear_value_head_dim),
            ("linear_conv_kernel_dim", self.taps, 64),
            ("vocab_size", self.vocab_size, sizes::VOCABULARY),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                sizes::POSITIONS,
            ),
            (
                "full_attention_interval",
                self.full_attention_interval,
                sizes::LAYERS,
            ),
        ])?;
        section.only("hidden_act", &self.hidden_act, "silu")?;
        for (count, divisor, names) in [
            (
                self.num_attention_heads,
                self.num_key_value_heads,
                "attention heads are not divisible by {} key-value heads",
            ),
            (
                self.linear_num_value_heads,
                self.linear_num_key_heads,
                "value heads of linear attention are not divisible by {} key heads",
            ),
        ] {
            if !count.is_multiple_of(divisor) {
                let names = names.replace("{}", &divisor.to_string());
                return Err(ModelError::config(format!("{count} {names}")));
            }
        }
        for (name, found, expected) in [
            ("attention_bias", self.attention_bias, false),
            ("attn_output_gate", self.attn_output_gate, true),
        ] {
            if found != expected {
                return Err(ModelError::config(format!(
                    "{name} is {found}, expected {expected}: such models are not supported"
                )));
            }
        }
        Ok(())
    }

    fn attention(&self) -> Result<Vec<bool>, ModelError> {
        let layers = self.num_hidden_layers;
        let interval = self.full_attention_interval;
        let attention: Vec<bool> = match &self.layer_types {
            Some(types) => {
                let known = ["linear_attention", "full_attention"];
                if let Some(other) = types.iter().find(|kind| !known.contains(&kind.as_str())) {
                    return Err(ModelError::config(format!(
                        "layer_types has {other:?}, expected \"linear_attention\" or \
                         \"full_attention\""
                    )));
                }
                types.iter().map(|kind| kind == "full_attention").collect()
            }
            None => (1..=layers).map(|i| i.is_multiple_of(interval)).collect(),
        };
        if attention.len() != layers || !attention.contains(&true) {
            return Err(ModelError::config(format!(
                "layer_types has {} layers, {} of them full attention; expected num_hidden_layers \
                 {layers} and at least one with full attention",
                attention.len(),
                attention.iter().filter(|&&is| is).count()
            )));
        }
        Ok(attention)
    }

    /// Returns the numbers of rotary frequencies of each axis.
    fn sections(&self, rope: &RopeFields) -> Result<[usize; 3], ModelError> {
        // Matches Python's int(), which rounds towards zero.
        let rotated = (self.head_dim as f64 * rope.share) as usize;
        let whole = RopeFields {
            share: 1.0,
            ..rope.clone()
        };
        let sections = sections(&whole, Some([11, 11, 10]))?;
        let sum = sections
            .iter()
            .fold(0usize, |sum, &n| sum.saturating_add(n));
        if sum == 0 || rope.share > 1.0 || sum.checked_mul(2) != Some(rotated) {
            return Err(ModelError::config(format!(
                "mrope_section {sections:?} sums to {sum}, expected half of the rotated elements of a \
                 head: {} by partial_rotary_factor {} of {}",
                rotated / 2,
                rope.share,
                self.head_dim
            )));
        }
        Ok(sections)
    }
}

/// The language model.
#[derive(Module, Debug)]
pub struct Qwen35Text<B: KernelBackend> {
    embedding: Embedding<B>,
    layers: Vec<Layer<B>>,
    norm: RmsNorm<B>,
    head: Option<Linear<B>>,
    mtp: Option<Mtp<B>>,
    #[module(skip)]
    config: Qwen35TextConfig,
}

impl<B: KernelBackend> Qwen35Text<B> {
    /// Declares the weights under `text` of the record; `model` is their prefix in the checkpoint. The
    /// layer that predicts further tokens may be missing: finetuned checkpoints often lack it.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(
        config: Qwen35TextConfig,
        model: &str,
        root: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let scope = root.part(Part::Text).child("text", "");
        let inner = scope.child("", model);
        let hidden = config.hidden_size;
        let tokens = scope.dimension("vocabulary", config.vocabulary)?;
        let embedding =
            inner.embedding("embedding", "embed_tokens", &tokens, hidden, config.tied)?;
        let scopes = inner.layers("layers", config.attention.len(), |i| format!("layers.{i}"))?;
        let layers = scopes.iter().zip(&config.attention);
        let layers = layers.map(|(scope, &is_attention)| Layer::init(&config, is_attention, scope));
        let head = || {
            let normed = scope.normed("norm", hidden);
            scope.linear("head", &[("lm_head", &tokens)], normed, false)
        };
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = inner.zero_centered_rms_norm("norm", "norm", hidden, config.norm_eps);
        let head = (!config.tied).then(head).transpose()?;
        let further = scope.child("mtp", "mtp");
        let has_mtp = config.mtp && further.has("fc.weight", "fc.weight");
        let mtp = has_mtp.then(|| Mtp::init(&config, &further)).transpose()?;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            mtp,
            config,
        })
    }
}

impl<B: KernelBackend> LanguageModel<B> for Qwen35Text<B> {
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
            layers: self.config.cached(),
            kv_heads: self.config.heads.kv_heads,
            head_dim: self.config.heads.head_dim,
            capacity,
            quantized: attention.all(|attention| attention.qkv.is_quantized()),
        }
    }

    fn mtp(&self) -> Option<&dyn MtpLayer<B>> {
        self.mtp.as_ref().map(|mtp| mtp as _)
    }

    fn rotary_means(&self, positions: &[Position]) -> Option<Vec<RotaryMeans>> {
        let (angle, pairs) = self.config.rotary_angles();
        rotary_means(positions, pairs, angle)
    }

    fn recurrent_states(&self, device: &B::Device) -> Vec<Box<dyn RecurrentState>> {
        let delta = self.config.delta;
        let inputs = [self.config.taps - 1, delta.width()];
        let state = || DeltaState::<B>::empty(inputs, delta.state(), device);
        let count = self.layers.len() - self.config.cached();
        (0..count).map(|_| Box::new(state()) as Box<_>).collect()
    }

    fn recurrent_bytes(&self) -> usize {
        let delta = self.config.delta;
        let [rows, columns] = delta.state();
        let elements = (self.config.taps - 1) * delta.width() + rows * columns;
        (self.layers.len() - self.config.cached()) * elements * size_of::<f32>()
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        self.embedding.forward(ids)
    }

    fn step(
        &self,
        mut input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let device = input.embeddings.device();
        let table = self.config.rotary_table(input.positions, &device);
        let (heads, revisable) = (self.config.heads, input.revisable);
        let output = input.output;
        if state.mtp.is_some() {
            input.output = OutputRows::All;
        }
        let x = run_mixed(&input, &self.layers, state, monitor, {
            |layer: &Layer<B>, x, cache, states: &mut Recurrences<'_, DeltaState<B>>, place| {
                let normed = layer.attention_norm.forward(x.clone());
                let x = match (&layer.attention, &layer.delta) {
                    (Some(attention), _) => {
                        attention.forward(normed, x, (&table, heads), cache, place)
                    }
                    (None, Some(delta)) => states.update(|state, first| {
                        let kinds = (first, revisable);
                        delta.forward(normed, x, self.config.delta, state, kinds, place)
                    }),
                    (None, None) => x,
                };
                layer.mlp(x)
            }
        })?;
        let hidden = finish(|x| self.norm.forward(x), x);
        if let (Some(state), Some(layer)) = (&mut state.mtp, &self.mtp) {
            state.push(layer, hidden.clone(), input.embeddings, input.positions);
        }
        Ok(match output {
            OutputRows::Last => last_row(hidden),
            OutputRows::All => hidden,
        })
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

/// A layer: attention or a gated delta rule, and an MLP.
#[derive(Module, Debug)]
struct Layer<B: KernelBackend> {
    attention_norm: RmsNorm<B>,
    attention: Option<Attention<B>>,
    delta: Option<DeltaNet<B>>,
    mlp_norm: RmsNorm<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> Layer<B> {
    fn init(
        config: &Qwen35TextConfig,
        is_attention: bool,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let norm = |name: &str, source: &str| {
            scope.zero_centered_rms_norm(name, source, hidden, config.norm_eps)
        };
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        let attention_norm = norm("attention_norm", "input_layernorm");
        let attention = || Attention::init(config, scope);
        let delta = || DeltaNet::init(config, scope);
        let mlp = scope.child("", "mlp");
        Ok(Self {
            attention_norm,
            attention: is_attention.then(attention).transpose()?,
            delta: (!is_attention).then(delta).transpose()?,
            mlp_norm: norm("mlp_norm", "post_attention_layernorm"),
            gate_up: mlp.linear(
                "gate_up",
                &[("gate_proj", &ffn), ("up_proj", &ffn)],
                scope.normed("mlp_norm", hidden),
                false,
            )?,
            down: mlp.linear("down", &[("down_proj", hidden)], gated, false)?,
        })
    }

    fn mlp(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        self.gate_up
            .gated_feed_forward(normed, Activation::Silu, &self.down, Some(x))
    }
}

/// Grouped-query attention with normalized queries and keys and a gate for every output.
#[derive(Module, Debug)]
struct Attention<B: KernelBackend> {
    /// Query and gate of each query head, then keys, then values.
    qkv: Linear<B>,
    q_norm: RmsNorm<B>,
    k_norm: RmsNorm<B>,
    out: Linear<B>,
}

impl<B: KernelBackend> Attention<B> {
    fn init(config: &Qwen35TextConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (hidden, eps) = (config.hidden_size, config.norm_eps);
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = config.heads;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let normed = scope.normed("attention_norm", hidden);
        let scope = scope.child("attention", "self_attn");
        let values = 2 * queries + keys;
        let attended = scope.repeated("qkv", values, queries, head_dim, heads / kv_heads);
        let norm = |name: &str| scope.zero_centered_rms_norm(name, name, head_dim, eps);
        Ok(Self {
            qkv: scope.linear(
                "qkv",
                &[("q_proj", 2 * queries), ("k_proj", keys), ("v_proj", keys)],
                normed,
                false,
            )?,
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
            out: scope.linear("out", &[("o_proj", hidden)], attended, false)?,
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
        let projected = self.qkv.forward(normed);
        let [tokens, width] = projected.dims();
        let (head_dim, queries) = (heads.head_dim, heads.heads * heads.head_dim);
        let (keys, values) = (2 * queries, 2 * queries + heads.kv_heads * head_dim);
        let part = |from: usize, to: usize| projected.clone().slice([0..tokens, from..to]);
        let of_heads = part(0, keys).reshape([tokens * heads.heads, 2 * head_dim]);
        let half = |first: usize| {
            let half = of_heads.clone().narrow(1, first, head_dim);
            half.reshape([tokens, queries])
        };
        let q = self.q_norm.forward_heads(half(0), head_dim);
        let k = self.k_norm.forward_heads(part(keys, values), head_dim);
        let qkv = Tensor::cat(vec![q, k, part(values, width)], 1);
        let attended = table.attend(qkv, heads, cache, place.layer, place.visible, scale(heads));
        let (attended, x) = place.used_rows(attended, x);
        let gate = match place.last_row {
            true => last_row(half(head_dim)),
            false => half(head_dim),
        };
        self.out.forward_residual(attended * sigmoid(gate), x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_without_types_take_turns() {
        let config = Qwen35TextConfig::parse(&json!({})).unwrap();
        assert!((0..32).all(|layer| config.attention[layer] == (layer % 4 == 3)));
        assert_eq!(
            (config.sections, config.heads.head_dim),
            ([11, 11, 10], 256)
        );
    }

    #[test]
    fn both_layouts_of_rotary_fields_say_the_same() {
        let rope = json!({"mrope_section": [3, 3, 2], "rope_theta": 1e5, "rope_type": "default",
            "partial_rotary_factor": 0.25});
        let new = json!({"head_dim": 64, "rope_parameters": rope});
        let old = json!({"head_dim": 64, "rope_theta": 1e5, "partial_rotary_factor": 0.25,
            "rope_scaling": {"type": "default", "mrope_section": [3, 3, 2]}});
        let [new, old] = [new, old].map(|config| Qwen35TextConfig::parse(&config).unwrap());
        assert_eq!(new, old);
        assert_eq!((new.rope_theta, new.sections), (1e5, [3, 3, 2]));
    }

    #[test]
    fn settings_that_are_not_supported_are_named() {
        for (config, word) in [
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"attn_output_gate": false}), "attn_output_gate"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"linear_num_value_heads": 24}), "24 value heads"),
            (json!({"num_key_value_heads": 3}), "16 attention heads"),
            (
                json!({"linear_conv_kernel_dim": 0}),
                "linear_conv_kernel_dim",
            ),
            (
                json!({"linear_key_head_dim": 1 << 20}),
                "linear_key_head_dim",
            ),
            (json!({"num_hidden_layers": 3}), "at least one"),
            (
                json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}),
                "sliding_attention",
            ),
            (json!({"layer_types": ["full_attention"]}), "has 1 layers"),
            (
                json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
                "yarn",
            ),
            (
                json!({"rope_parameters": {"mrope_section": [11, 11, u64::MAX]}}),
                "mrope_section",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "partial_rotary_factor",
            ),
        ] {
            let error = Qwen35TextConfig::parse(&config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
