//! The decoder-only language model shared by most families: Llama (Touvron et al. 2023), Qwen2,
//! Phi-3, Gemma 3 and related models. Pre-norm layers of grouped-query attention with rotary
//! embeddings and a gated MLP. The reference is `modeling_llama.py`, `modeling_qwen2.py`,
//! `modeling_phi3.py` and `modeling_gemma3.py` of `transformers`.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, CacheShape, Heads, KernelBackend, stage};

use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, StepInput};
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::reduce::anchors::RotaryMeans;
use crate::reduce::language::DecoderLayers;
use crate::sizes::{self, Section};
use crate::text::rotary::{RotaryScaling, RotaryTable, inverse_frequencies, rotary_means};
use crate::text::step::{Place, finish, run_layers, run_together, weights_of};
use crate::weights::{Extent, Part, Scope};

/// Computation of rotary angles from positions.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryKind {
    /// Time, height and width, each with its own section of the frequencies (M-RoPE, Wang et al.
    /// 2024, section 2.1); the sections sum to half a head.
    Sections([usize; 3]),
    /// Time, height and width as in [`Sections`](Self::Sections), but taking turns over the first
    /// frequencies instead of in a row (Qwen3-VL).
    InterleavedSections([usize; 3]),
    /// One position per token, with optional partial rotation and scaling of frequencies.
    Scaled(ScaledRotary),
}

/// Parameters of [`RotaryKind::Scaled`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledRotary {
    /// Number of leading elements of a head that are rotated; even.
    pub dim: usize,
    /// Scaling of the frequencies.
    pub scaling: RotaryScaling,
}

/// Sizes of a [`Decoder`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// The kind of norms and their places.
    pub norms: DecoderNorms,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Factor of the embeddings of tokens.
    pub embedding_scale: f32,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Computation of rotary angles.
    pub rotary: RotaryKind,
    /// `true` if queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// `true` if every head of queries and keys is normalized before it is rotated.
    pub qk_norm: bool,
    /// `true` if the embedding table is also the output head.
    pub tied: bool,
    /// Context length of the model.
    pub context_length: usize,
    /// Layers whose tokens see only those near before them.
    pub sliding_window: Option<SlidingWindow>,
}

/// The kind of norms of a decoder and their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderNorms {
    /// Norms before attention and MLP.
    Pre,
    /// Norms before and after attention and MLP, whose scales the checkpoint stores less 1, as in
    /// Gemma.
    ZeroCenteredSandwich,
}

/// Attention to the last tokens only.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// Number of tokens that a token sees, its own included.
    pub size: usize,
    /// For each layer, whether it has the window.
    pub layers: Vec<bool>,
    /// Base of the rotary frequencies of these layers, if they have their own. These frequencies
    /// are not scaled.
    pub rope_theta: Option<f64>,
}

impl DecoderConfig {
    /// Checks that the sizes describe a valid model.
    ///
    /// # Errors
    /// If a size is zero or implausible, or sizes do not divide each other.
    pub fn check(&self) -> Result<(), ModelError> {
        Section("").sizes(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("num_hidden_layers", self.layers, sizes::LAYERS),
            ("num_attention_heads", self.heads, sizes::HEADS),
            ("num_key_value_heads", self.kv_heads, sizes::HEADS),
            ("head_dim", self.head_dim, sizes::HEADS),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("vocab_size", self.vocabulary, sizes::VOCABULARY),
            (
                "max_position_embeddings",
                self.context_length,
                sizes::POSITIONS,
            ),
        ])?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ModelError::config(format!(
                "{} attention heads are not divisible by {} key-value heads",
                self.heads, self.kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ModelError::config(format!(
                "head size {} is odd, rotary embeddings require an even size",
                self.head_dim
            )));
        }
        if self
            .sliding_window
            .as_ref()
            .is_some_and(|window| window.size == 0)
        {
            return Err(ModelError::config(
                "sliding_window is 0, expected at least 1: every token sees itself",
            ));
        }
        if let RotaryKind::Sections(sections) | RotaryKind::InterleavedSections(sections) =
            &self.rotary
        {
            let sum = sections
                .iter()
                .fold(0, |sum: usize, &n| sum.saturating_add(n));
            if sum != self.head_dim / 2 {
                return Err(ModelError::config(format!(
                    "mrope_section {sections:?} sums to {sum}, expected half a head: {}",
                    self.head_dim / 2
                )));
            }
        }
        Ok(())
    }

    /// Returns the sliding window of a layer that has one.
    fn sliding(&self, layer: usize) -> Option<&SlidingWindow> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer)?.then_some(window)
    }

    fn window(&self, layer: usize) -> Option<usize> {
        Some(self.sliding(layer)?.size)
    }

    /// Returns the base of the rotary frequencies of a layer with its own base.
    fn local_theta(&self, layer: usize) -> Option<f64> {
        self.sliding(layer)?.rope_theta
    }

    /// Declares a norm of the decoder.
    fn norm<B: KernelBackend>(
        &self,
        scope: &Scope<'_, '_, B>,
        (name, source): (&str, &str),
        width: usize,
    ) -> RmsNorm<B> {
        match self.norms {
            DecoderNorms::Pre => scope.rms_norm(name, source, width, self.rms_norm_eps),
            DecoderNorms::ZeroCenteredSandwich => {
                scope.zero_centered_rms_norm(name, source, width, self.rms_norm_eps)
            }
        }
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }
}

/// The language model.
#[derive(Module, Debug)]
pub struct Decoder<B: KernelBackend> {
    embedding: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    head: Option<Linear<B>>,
    #[module(skip)]
    config: DecoderConfig,
}

/// Storage of the projections that this decoder computes in one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    /// `q_proj`, `k_proj`, `v_proj` and `gate_proj`, `up_proj`.
    Split,
    /// `qkv_proj` and `gate_up_proj`, stacked in that order, as in Phi-3.
    Fused,
}

/// Names of a decoder's modules in the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct DecoderNames {
    /// Module of `embed_tokens`, `layers` and `norm`.
    pub model: &'static str,
    /// The output head.
    pub head: &'static str,
}

impl DecoderNames {
    /// Names in a text-only model, and in a multimodal model that extends one.
    pub const TOP: Self = Self {
        model: "model",
        head: "lm_head",
    };

    /// Names in a language model inside another model.
    pub const NESTED: Self = Self {
        model: "language_model.model",
        head: "language_model.lm_head",
    };
}

impl<B: KernelBackend> Decoder<B> {
    /// Declares the weights under `text` of the record, from separate projections in the
    /// checkpoint.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(
        config: DecoderConfig,
        names: DecoderNames,
        root: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        Self::init_with(config, names, Projections::Split, root)
    }

    /// Declares the weights like [`Self::init`], for either storage of projections.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub fn init_with(
        config: DecoderConfig,
        names: DecoderNames,
        projections: Projections,
        root: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let scope = root.part(Part::Text).child("text", "");
        let model = scope.child("", names.model);
        let hidden = config.hidden_size;
        let tokens = scope.dimension("vocabulary", config.vocabulary)?;
        let embedding =
            model.embedding("embedding", "embed_tokens", &tokens, hidden, config.tied)?;
        let layers = model
            .layers("layers", config.layers, |i| format!("layers.{i}"))?
            .iter()
            .map(|scope| DecoderLayer::init(&config, projections, scope))
            .collect::<Result<_, _>>()?;
        let norm = config.norm(&model, ("norm", "norm"), hidden);
        let head = (!config.tied)
            .then(|| {
                let normed = scope.normed("norm", hidden);
                scope.linear("head", &[(names.head, &tokens)], normed, false)
            })
            .transpose()?;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            config,
        })
    }

    /// Returns the angle of each pair of rotated elements at a position of a sequence that is `long`
    /// or not, the number of pairs, and the factor of cosines and sines. `local_theta` is the base of
    /// layers with their own.
    fn rotary_angles(
        &self,
        long: bool,
        local_theta: Option<f64>,
    ) -> (impl Fn(Position, usize) -> f32, usize, f32) {
        let theta = self.config.rope_theta;
        let (frequencies, factor) = match (&self.config.rotary, local_theta) {
            (RotaryKind::Scaled(ScaledRotary { dim, scaling }), None) => (
                scaling.frequencies(theta, *dim, long),
                scaling.attention_factor(),
            ),
            (_, local) => {
                let theta = local.unwrap_or(theta);
                (inverse_frequencies(theta, self.config.head_dim), 1.0)
            }
        };
        let axes: Vec<usize> = match &self.config.rotary {
            RotaryKind::Scaled(_) => vec![0; frequencies.len()],
            RotaryKind::Sections(sections) => sections
                .iter()
                .enumerate()
                .flat_map(|(axis, &count)| std::iter::repeat_n(axis, count))
                .collect(),
            RotaryKind::InterleavedSections(sections) => interleaved(*sections),
        };
        let pairs = frequencies.len();
        let angle = move |position: Position, i: usize| position[axes[i]] as f32 * frequencies[i];
        (angle, pairs, factor)
    }

    /// Builds the table for tokens at `positions` of a sequence that is `long` or not, for layers
    /// with or without their own base.
    fn rotary_table(
        &self,
        positions: &[Position],
        long: bool,
        local_theta: Option<f64>,
        device: &B::Device,
    ) -> RotaryTable<B> {
        let (angle, pairs, factor) = self.rotary_angles(long, local_theta);
        let angle = |token: usize, i: usize| angle(positions[token], i);
        RotaryTable::new(positions.len(), pairs, factor, angle, device)
    }

    /// Builds the tables of all layers for tokens at `positions` of a sequence that is `long` or
    /// not.
    fn rotary_tables(
        &self,
        positions: &[Position],
        long: bool,
        device: &B::Device,
    ) -> RotaryTables<B> {
        let table = |theta| self.rotary_table(positions, long, theta, device);
        let sliding = self.config.sliding_window.as_ref();
        RotaryTables {
            global: table(None),
            local: sliding
                .and_then(|window| window.rope_theta)
                .map(|theta| table(Some(theta))),
        }
    }
}

/// Tables of the layers of a decoder.
struct RotaryTables<B: KernelBackend> {
    global: RotaryTable<B>,
    /// Table of the layers with a sliding window, if they have their own base.
    local: Option<RotaryTable<B>>,
}

impl<B: KernelBackend> RotaryTables<B> {
    /// Appends the tokens of `qkv` to a layer of the cache and lets them attend to it.
    fn attend(
        &self,
        config: &DecoderConfig,
        qkv: Tensor<B, 2>,
        cache: &mut B::KvCache,
        place: Place<'_>,
    ) -> Tensor<B, 2> {
        let local = self.local.as_ref();
        let own = local.filter(|_| config.sliding(place.layer).is_some());
        let (table, heads) = (own.unwrap_or(&self.global), config.heads());
        let (layer, visible) = (place.layer, place.visible);
        table.attend(qkv, heads, cache, layer, visible, config.attention_scale)
    }
}

impl<B: KernelBackend> LanguageModel<B> for Decoder<B> {
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
        CacheShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            capacity,
            quantized: self.layers.iter().all(|layer| layer.qkv.is_quantized()),
        }
    }

    fn is_long(&self, tokens: usize) -> bool {
        match &self.config.rotary {
            RotaryKind::Scaled(ScaledRotary { scaling, .. }) => scaling.is_long(tokens),
            _ => false,
        }
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        let rows = self.embedding.forward(ids);
        match self.config.embedding_scale {
            1.0 => rows,
            scale => rows * scale,
        }
    }

    fn rotary_means(&self, positions: &[Position]) -> Option<Vec<RotaryMeans>> {
        let (angle, pairs, _) = self.rotary_angles(false, None);
        rotary_means(positions, pairs, angle)
    }

    fn step(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let x = self.enter(&input);
        let x = self.run(x, &input, 0..self.layers.len(), state, monitor)?;
        Ok(self.finish(x))
    }

    fn step_together(
        &self,
        input: StepInput<'_, B>,
        states: &mut [&mut DecoderState<B>],
    ) -> Result<Tensor<B, 2>, ModelError> {
        let (config, x) = (&self.config, self.enter(&input));
        let device = x.device();
        let tables = input.positions.chunks(1).zip(&*states);
        let tables: Vec<_> = tables
            .map(|(position, state)| self.rotary_tables(position, state.long, &device))
            .collect();
        let window = |layer| config.window(layer);
        let x = run_together(x, &self.layers, window, states, |layer, x, mut together| {
            layer.forward(x, config, together.place(), |qkv| {
                together.attend(qkv, |i, qkv, cache, place| {
                    tables[i].attend(config, qkv, cache, place)
                })
            })
        });
        Ok(self.finish(x))
    }

    fn decoder_layers(&self) -> Option<&dyn DecoderLayers<B>> {
        Some(self)
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

impl<B: KernelBackend> DecoderLayers<B> for Decoder<B> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn window(&self, layer: usize) -> Option<usize> {
        self.config.window(layer)
    }

    fn run(
        &self,
        x: Tensor<B, 2>,
        input: &StepInput<'_, B>,
        layers: Range<usize>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let config = &self.config;
        let tables = self.rotary_tables(input.positions, state.long, &x.device());
        run_layers(
            input,
            x,
            (&self.layers, layers),
            |layer| config.window(layer),
            &mut state.cache,
            monitor,
            |layer, x, cache, place| {
                let attend = |qkv| tables.attend(config, qkv, cache, place);
                layer.forward(x, config, place, attend)
            },
        )
    }

    fn attention_row(
        &self,
        layer: usize,
        x: Tensor<B, 2>,
        position: Position,
        keys: Range<usize>,
        state: &DecoderState<B>,
    ) -> Tensor<B, 2> {
        let (heads, weights) = (self.config.heads(), &self.layers[layer]);
        let query = || {
            let local_theta = self.config.local_theta(layer);
            let table = self.rotary_table(&[position], state.long, local_theta, &x.device());
            let qkv = weights.projected(x, heads);
            table.rotate(qkv, 0, heads.heads, heads.head_dim)
        };
        let scale = self.config.attention_scale;
        weights_of::<B>((layer, heads), query, &state.cache, keys, scale)
    }

    fn finish(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        finish(|x| self.norm.forward(x), x)
    }
}

/// Returns the axis of each frequency if sections of these sizes take turns: frequency `i` belongs
/// to axis `i % 3` while that axis has less than its number of turns, otherwise to the time.
pub(crate) fn interleaved(sections: [usize; 3]) -> Vec<usize> {
    let axis = |i: usize| match i % 3 {
        axis @ 1.. if i / 3 < sections[axis] => axis,
        _ => 0,
    };
    (0..sections.iter().sum()).map(axis).collect()
}

#[derive(Module, Debug)]
struct DecoderLayer<B: KernelBackend> {
    attention_norm: RmsNorm<B>,
    qkv: Linear<B>,
    q_norm: Option<RmsNorm<B>>,
    k_norm: Option<RmsNorm<B>>,
    out: Linear<B>,
    out_norm: Option<RmsNorm<B>>,
    mlp_norm: RmsNorm<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
    down_norm: Option<RmsNorm<B>>,
}

impl<B: KernelBackend> DecoderLayer<B> {
    fn init(
        config: &DecoderConfig,
        projections: Projections,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let heads = scope.dimension_of("heads", config.heads, head_dim)?;
        let kv_heads = scope.dimension_of("kv_heads", config.kv_heads, head_dim)?;
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let (qkv, gate_up) = match projections {
            Projections::Split => (
                vec![
                    ("q_proj", heads.clone()),
                    ("k_proj", kv_heads.clone()),
                    ("v_proj", kv_heads.clone()),
                ],
                vec![("gate_proj", ffn.clone()), ("up_proj", ffn.clone())],
            ),
            Projections::Fused => (
                vec![("qkv_proj", Extent::stacked(&[&heads, &kv_heads, &kv_heads]))],
                vec![("gate_up_proj", Extent::stacked(&[&ffn, &ffn]))],
            ),
        };
        let normed = |norm| scope.normed(norm, hidden);
        let values = heads.len() + kv_heads.len();
        let shared_by = config.heads / config.kv_heads;
        let attended = scope.repeated("qkv", values, &heads, head_dim, shared_by);
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        let attention = scope.child("", "self_attn");
        let head_norm = |name| {
            let norm = || config.norm(&attention, (name, name), head_dim);
            config.qk_norm.then(norm)
        };
        let norm = |name, source| config.norm(scope, (name, source), hidden);
        let is_sandwich = config.norms == DecoderNorms::ZeroCenteredSandwich;
        let after = |name, source| is_sandwich.then(|| norm(name, source));
        let before_mlp = match is_sandwich {
            true => "pre_feedforward_layernorm",
            false => "post_attention_layernorm",
        };
        let mlp = scope.child("", "mlp");
        Ok(Self {
            attention_norm: norm("attention_norm", "input_layernorm"),
            qkv: attention.linear("qkv", &qkv, normed("attention_norm"), config.qkv_bias)?,
            q_norm: head_norm("q_norm"),
            k_norm: head_norm("k_norm"),
            out: attention.linear("out", &[("o_proj", hidden)], attended, false)?,
            out_norm: after("out_norm", "post_attention_layernorm"),
            mlp_norm: norm("mlp_norm", before_mlp),
            gate_up: mlp.linear("gate_up", &gate_up, normed("mlp_norm"), false)?,
            down: mlp.linear("down", &[("down_proj", hidden)], gated, false)?,
            down_norm: after("down_norm", "post_feedforward_layernorm"),
        })
    }

    /// Computes queries, keys and values before rotation:
    /// `[tokens, (heads + 2 kv_heads) * head_dim]`.
    fn projected(&self, x: Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let qkv = self.qkv.forward(self.attention_norm.forward(x));
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else {
            return qkv;
        };
        let [tokens, width] = qkv.dims();
        let keys = heads.heads * heads.head_dim;
        let values = keys + heads.kv_heads * heads.head_dim;
        let part = |columns: Range<usize>| qkv.clone().slice([0..tokens, columns]);
        let q = q_norm.forward_heads(part(0..keys), heads.head_dim);
        let k = k_norm.forward_heads(part(keys..values), heads.head_dim);
        Tensor::cat(vec![q, k, part(values..width)], 1)
    }

    /// Runs the layer. `attend` appends queries, keys and values to the cache and returns the result
    /// of attention: `[tokens, heads * head_dim]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        config: &DecoderConfig,
        place: Place<'_>,
        attend: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let x = {
            let _stage = stage::module("attention");
            let attended = attend(self.projected(x.clone(), config.heads()));
            match &self.out_norm {
                None => place.close_attention(&self.out, attended, x),
                Some(norm) => {
                    let (attended, x) = place.used_rows(attended, x);
                    x + norm.forward(self.out.forward(attended))
                }
            }
        };
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        let mlp = |residual| {
            let (gate_up, down) = (&self.gate_up, &self.down);
            gate_up.gated_feed_forward(normed, config.activation, down, residual)
        };
        match &self.down_norm {
            None => mlp(Some(x)),
            Some(norm) => x + norm.forward(mlp(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand from `apply_interleaved_mrope` of the reference. The last frequencies belong
    /// to the time, whatever their remainder.
    #[test]
    fn axes_take_turns() {
        assert_eq!(interleaved([4, 2, 1]), [0, 1, 2, 0, 1, 0, 0]);
        assert_eq!(interleaved([2, 1, 1]), [0, 1, 2, 0]);
    }
}
