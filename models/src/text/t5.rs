//! T5 (Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>) in the variant of Flan-T5 (version
//! 1.1): an encoder over the prompt and a decoder with cross-attention, both with relative position
//! biases, norms without mean subtraction, gated feed-forward layers. The reference is
//! `modeling_t5.py` of `transformers`.
//!
//! The position bias tables are stored as plain f32 and never quantized: they are tiny and affect
//! every score.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, CacheShape, Columns, Heads, KernelBackend, KvStore, Mask, attention,
    cached_attention, probe, select_rows, stage,
};
use serde::Deserialize;
use serde_json::Value;

use crate::config_file::parse_section;
use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, OutputRows, StepInput};
use crate::layers::{Embedding, Linear, RmsNorm, activation};
use crate::monitor::Monitor;
use crate::reduce::language::unsupported;
use crate::sizes::{self, Section};
use crate::text::step::{capture_last, last_row};
use crate::weights::{Extent, Inputs, Part, Scope};

/// Scores are not scaled; the initialization of the reference compensates for it.
const SCALE: f32 = 1.0;

/// The language model's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Elements of a head.
    pub d_kv: usize,
    /// Width of the feed-forward layers.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder, if different from the encoder.
    pub num_decoder_layers: Option<usize>,
    /// Attention heads.
    pub num_heads: usize,
    /// Number of distance buckets, each with its own bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on the last bucket is used.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// Kind of feed-forward layers.
    pub feed_forward_proj: String,
    /// Name of their activation, by default GELU with the tanh approximation. BLIP-2's published
    /// checkpoints with Flan-T5 use the exact GELU.
    pub dense_act_fn: Option<String>,
    /// `true` if the embedding table is also the output head.
    pub tie_word_embeddings: bool,
    /// `true` if the outputs of the decoder are scaled, as in T5 before version 1.1. Written by
    /// `transformers` 5, which calls the tables tied in all versions.
    pub scale_decoder_outputs: Option<bool>,
    /// First token of the decoder.
    pub decoder_start_token_id: Option<u32>,
    /// Padding token of batches, the default for the first token of the decoder.
    pub pad_token_id: u32,
    /// End-of-sequence token of prompts and answers.
    pub eos_token_id: u32,
    /// Context length of the model. Relative positions have no limit, but the biases of a prompt
    /// take memory quadratic in its length.
    pub n_positions: usize,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            dense_act_fn: None,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            decoder_start_token_id: None,
            pad_token_id: 0,
            eos_token_id: 1,
            n_positions: 512,
        }
    }
}

impl T5Config {
    /// Reads the language model's section of `config.json`.
    ///
    /// # Errors
    /// If the configuration is invalid or not supported, as that of T5 before version 1.1.
    pub fn parse(section: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_section("text_config", section)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        let section = Section("text_config");
        section.sizes(&[
            ("vocab_size", self.vocab_size, sizes::VOCABULARY),
            ("d_model", self.d_model, sizes::WIDTH),
            ("d_kv", self.d_kv, sizes::HEADS),
            ("d_ff", self.d_ff, sizes::FFN),
            ("num_layers", self.num_layers, sizes::LAYERS),
            ("num_decoder_layers", self.decoder_layers(), sizes::LAYERS),
            ("num_heads", self.num_heads, sizes::HEADS),
            ("n_positions", self.n_positions, 1 << 14),
        ])?;
        // Half of the decoder's buckets are exact. With fewer distances than checked here, the
        // logarithm that spreads the others would have an argument of at most one.
        let buckets = self.relative_attention_num_buckets;
        let distance = self.relative_attention_max_distance;
        if !(4..=1 << 12).contains(&buckets)
            || !buckets.is_multiple_of(2)
            || distance <= buckets / 2
            || distance > 1 << 20
        {
            return Err(ModelError::config(format!(
                "text_config: relative_attention_num_buckets is {buckets}, expected an even \
                 number from 4 to 4096, and relative_attention_max_distance {distance}, expected \
                 more than half of that"
            )));
        }
        let scaled = (self.scale_decoder_outputs).unwrap_or(self.tie_word_embeddings);
        if self.feed_forward_proj != "gated-gelu" || scaled {
            return Err(ModelError::config(format!(
                "text_config: feed_forward_proj is {:?}, tie_word_embeddings {} and \
                 scale_decoder_outputs {scaled}; only T5 1.1 (Flan-T5) with \"gated-gelu\" and \
                 false is supported",
                self.feed_forward_proj, self.tie_word_embeddings
            )));
        }
        section.token(
            "decoder_start_token_id",
            self.start_token(),
            self.vocab_size,
        )
    }

    fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    fn start_token(&self) -> u32 {
        self.decoder_start_token_id.unwrap_or(self.pad_token_id)
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        let name = self.dense_act_fn.as_deref().unwrap_or("gelu_new");
        activation("text_config.dense_act_fn", name)
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.num_heads,
            kv_heads: self.num_heads,
            head_dim: self.d_kv,
        }
    }
}

/// The language model.
#[derive(Module, Debug)]
pub struct T5<B: KernelBackend> {
    embedding: Embedding<B>,
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    head: Linear<B>,
    #[module(skip)]
    config: T5Config,
}

impl<B: KernelBackend> T5<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `shared`, `encoder`, `decoder` and
    /// `lm_head`.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(config: T5Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        config.check()?;
        let scope = scope.part(Part::Text);
        let hidden = config.d_model;
        let tokens = scope.dimension("vocabulary", config.vocab_size)?;
        let (encoder, decoder) = (
            scope.child("encoder", "encoder"),
            scope.child("decoder", "decoder"),
        );
        let encoded = encoder.normed("norm", hidden);
        let normed = decoder.normed("norm", hidden);
        Ok(Self {
            embedding: scope.embedding("embedding", "shared", &tokens, hidden, false)?,
            encoder: Encoder::init(&config, &encoder)?,
            decoder: Decoder::init(&config, &encoded, &decoder)?,
            head: scope.linear("head", &[("lm_head", &tokens)], normed, false)?,
            config,
        })
    }
}

impl<B: KernelBackend> LanguageModel<B> for T5<B> {
    fn hidden_size(&self) -> usize {
        self.config.d_model
    }

    fn vocabulary(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.config.n_positions
    }

    fn cache_shape(&self, capacity: usize) -> CacheShape {
        CacheShape {
            layers: self.config.decoder_layers(),
            kv_heads: self.config.num_heads,
            head_dim: self.config.d_kv,
            capacity,
            quantized: self
                .decoder
                .layers
                .iter()
                .all(|layer| layer.qkv.is_quantized()),
        }
    }

    /// Counts the start token and the answer; the prompt is in the encoder.
    fn positions(&self, _prompt: usize, answer: usize) -> usize {
        answer.saturating_add(1).min(self.config.n_positions)
    }

    /// Returns 0: encoder tokens attend to all others, so a longer prompt changes all of them.
    fn reusable(&self, _shared: usize) -> usize {
        0
    }

    fn decoder_tokens(&self, _prompt: &[u32]) -> Vec<u32> {
        vec![self.config.start_token()]
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        self.embedding.forward(ids)
    }

    /// Runs the encoder over the prompt and the decoder over its start token.
    fn prefill(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        if input.reduction.is_some() {
            return Err(unsupported());
        }
        {
            let _text = stage::scope(format_args!("text"));
            let encoded = self
                .encoder
                .forward(input.embeddings, self.config.heads(), monitor)?;
            probe::capture("encoder_out", &encoded.clone().unsqueeze::<3>());
            state.cross = self.decoder.cross_keys(encoded);
        }
        let start = self.embed(&[self.config.start_token()]);
        self.step(StepInput::new(start, &[[0; 3]]), state, monitor)
    }

    /// Runs the decoder; its positions follow from the cache.
    fn step(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let _text = stage::scope(format_args!("text"));
        let hidden = self
            .decoder
            .forward(input, state, self.config.heads(), monitor)?;
        capture_last(&hidden);
        Ok(hidden)
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let _text = stage::scope(format_args!("text"));
        let _stage = stage::module("head");
        self.head.forward(hidden)
    }
}

#[derive(Module, Debug)]
struct Encoder<B: KernelBackend> {
    bias: PositionBias<B>,
    layers: Vec<EncoderLayer<B>>,
    norm: RmsNorm<B>,
}

impl<B: KernelBackend> Encoder<B> {
    fn init(config: &T5Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let heads = scope.dimension_of("heads", config.num_heads, 1)?;
        let inner = scope.dimension_of("heads", config.num_heads, config.d_kv)?;
        Ok(Self {
            bias: PositionBias::init(config, Direction::Both, &heads, scope),
            layers: scope
                .layers("layers", config.num_layers, layer_source)?
                .iter()
                .map(|scope| EncoderLayer::init(config, &inner, scope))
                .collect::<Result<_, _>>()?,
            norm: final_norm(config, scope),
        })
    }

    fn forward(
        &self,
        embeddings: Tensor<B, 2>,
        heads: Heads,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let _scope = stage::scope(format_args!("encoder"));
        let [tokens, _] = embeddings.dims();
        let bias = self.bias.forward(0..tokens, tokens);
        let mut x = embeddings;
        for (i, layer) in self.layers.iter().enumerate() {
            monitor.report(i, self.layers.len())?;
            let _layer = stage::scope(format_args!("layers.{i}"));
            x = layer.forward(x, &bias, heads);
        }
        Ok(self.norm.forward(x))
    }
}

#[derive(Module, Debug)]
struct EncoderLayer<B: KernelBackend> {
    attention_norm: RmsNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp: FeedForward<B>,
}

impl<B: KernelBackend> EncoderLayer<B> {
    fn init(
        config: &T5Config,
        inner: &Extent,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let hidden = config.d_model;
        let normed = scope.normed("attention_norm", hidden);
        let attended = scope.produced("qkv", 2 * inner.len(), inner);
        let attention = scope.child("", "0.SelfAttention");
        Ok(Self {
            attention_norm: norm(config, "attention_norm", "0.layer_norm", scope),
            qkv: attention.linear("qkv", &qkv(inner), normed, false)?,
            out: attention.linear("out", &[("o", hidden)], attended, false)?,
            mlp: FeedForward::init(config, &scope.child("mlp", "1"))?,
        })
    }

    fn forward(&self, x: Tensor<B, 2>, bias: &Tensor<B, 3>, heads: Heads) -> Tensor<B, 2> {
        let x = {
            let _stage = stage::module("attention");
            let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
            let [k, v] = [1, 2].map(|i| Columns {
                tensor: qkv.clone(),
                column: i * heads.heads * heads.head_dim,
            });
            let bias = Some(bias.clone());
            let attended = attention(qkv, k, v, heads, Mask::Full, bias, SCALE);
            self.out.forward_residual(attended, x)
        };
        self.mlp.forward(x)
    }
}

#[derive(Module, Debug)]
struct Decoder<B: KernelBackend> {
    bias: PositionBias<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
}

impl<B: KernelBackend> Decoder<B> {
    fn init(
        config: &T5Config,
        encoded: &Inputs,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let heads = scope.dimension_of("heads", config.num_heads, 1)?;
        let inner = scope.dimension_of("heads", config.num_heads, config.d_kv)?;
        Ok(Self {
            bias: PositionBias::init(config, Direction::Past, &heads, scope),
            layers: scope
                .layers("layers", config.decoder_layers(), layer_source)?
                .iter()
                .map(|scope| DecoderLayer::init(config, &inner, encoded, scope))
                .collect::<Result<_, _>>()?,
            norm: final_norm(config, scope),
        })
    }

    /// Computes keys and values of the encoder's output for every layer: `[tokens, 2 * heads *
    /// d_kv]`.
    fn cross_keys(&self, encoded: Tensor<B, 2>) -> Vec<Tensor<B, 2>> {
        let _scope = stage::scope(format_args!("decoder"));
        let _stage = stage::module("cross_keys");
        self.layers
            .iter()
            .map(|layer| layer.cross_kv.forward(encoded.clone()))
            .collect()
    }

    /// The normalized hidden states that `input` asks for.
    fn forward(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        heads: Heads,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let _scope = stage::scope(format_args!("decoder"));
        let [tokens, _] = input.embeddings.dims();
        let past = state.cache.len();
        let bias = self.bias.forward(past..past + tokens, past + tokens);
        let mut x = input.embeddings;
        capture_last(&x);
        for (i, layer) in self.layers.iter().enumerate() {
            monitor.report(i, self.layers.len())?;
            let _layer = stage::scope(format_args!("layers.{i}"));
            let attended = layer.attend(x, &bias, &mut state.cache, i, heads);
            x = layer
                .mlp
                .forward(layer.look(attended, &state.cross[i], heads));
            if i + 1 < self.layers.len() {
                capture_last(&x);
            }
        }
        state.cache.advance(tokens);
        Ok(self.norm.forward(match input.output {
            OutputRows::Last => last_row(x),
            OutputRows::All => x,
        }))
    }
}

#[derive(Module, Debug)]
struct DecoderLayer<B: KernelBackend> {
    attention_norm: RmsNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    cross_norm: RmsNorm<B>,
    cross_q: Linear<B>,
    cross_kv: Linear<B>,
    cross_out: Linear<B>,
    mlp: FeedForward<B>,
}

impl<B: KernelBackend> DecoderLayer<B> {
    fn init(
        config: &T5Config,
        inner: &Extent,
        encoded: &Inputs,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let hidden = config.d_model;
        let normed = |norm| scope.normed(norm, hidden);
        let attended = scope.produced("qkv", 2 * inner.len(), inner);
        let cross_inner = scope.dimension_of("cross_heads", config.num_heads, config.d_kv)?;
        let looked = scope.produced("cross_kv", cross_inner.len(), &cross_inner);
        let cross_kv = [("k", &cross_inner), ("v", &cross_inner)];
        let attention = scope.child("", "0.SelfAttention");
        let cross = scope.child("", "1.EncDecAttention");
        Ok(Self {
            attention_norm: norm(config, "attention_norm", "0.layer_norm", scope),
            qkv: attention.linear("qkv", &qkv(inner), normed("attention_norm"), false)?,
            out: attention.linear("out", &[("o", hidden)], attended, false)?,
            cross_norm: norm(config, "cross_norm", "1.layer_norm", scope),
            cross_q: cross.linear(
                "cross_q",
                &[("q", &cross_inner)],
                normed("cross_norm"),
                false,
            )?,
            cross_kv: cross.linear("cross_kv", &cross_kv, encoded.clone(), false)?,
            cross_out: cross.linear("cross_out", &[("o", hidden)], looked, false)?,
            mlp: FeedForward::init(config, &scope.child("mlp", "2"))?,
        })
    }

    /// Attends to the answer so far.
    fn attend(
        &self,
        x: Tensor<B, 2>,
        bias: &Tensor<B, 3>,
        cache: &mut B::KvCache,
        layer: usize,
        heads: Heads,
    ) -> Tensor<B, 2> {
        let _stage = stage::module("attention");
        let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
        let bias = Some(bias.clone());
        let attended = cached_attention::<B>(qkv, heads, cache, layer, Mask::Causal, bias, SCALE);
        self.out.forward_residual(attended, x)
    }

    /// Attends to the prompt.
    fn look(&self, x: Tensor<B, 2>, kv: &Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let _stage = stage::module("cross_attention");
        let q = self.cross_q.forward(self.cross_norm.forward(x.clone()));
        let v = Columns {
            tensor: kv.clone(),
            column: heads.heads * heads.head_dim,
        };
        let attended = attention(q, kv.clone(), v, heads, Mask::Full, None, SCALE);
        self.cross_out.forward_residual(attended, x)
    }
}

#[derive(Module, Debug)]
struct FeedForward<B: KernelBackend> {
    norm: RmsNorm<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> FeedForward<B> {
    fn init(config: &T5Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let hidden = config.d_model;
        let ffn = scope.dimension("ffn", config.d_ff)?;
        let normed = scope.normed("norm", hidden);
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        let dense = scope.child("", "DenseReluDense");
        Ok(Self {
            norm: norm(config, "norm", "layer_norm", scope),
            gate_up: dense.linear("gate_up", &[("wi_0", &ffn), ("wi_1", &ffn)], normed, false)?,
            down: dense.linear("down", &[("wo", hidden)], gated, false)?,
            activation: config.activation()?,
        })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let _stage = stage::module("mlp");
        let normed = self.norm.forward(x.clone());
        self.gate_up
            .gated_feed_forward(normed, self.activation, &self.down, Some(x))
    }
}

/// Returns the checkpoint prefix of the sublayers of a layer.
fn layer_source(layer: usize) -> String {
    format!("block.{layer}.layer")
}

fn qkv(inner: &Extent) -> [(&'static str, &Extent); 3] {
    [("q", inner), ("k", inner), ("v", inner)]
}

fn norm<B: KernelBackend>(
    config: &T5Config,
    name: &str,
    source: &str,
    scope: &Scope<'_, '_, B>,
) -> RmsNorm<B> {
    scope.rms_norm(name, source, config.d_model, config.layer_norm_epsilon)
}

fn final_norm<B: KernelBackend>(config: &T5Config, scope: &Scope<'_, '_, B>) -> RmsNorm<B> {
    norm(config, "norm", "final_layer_norm", scope)
}

/// The keys that a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Keys before and after the query; each side has half of the buckets.
    Both,
    /// Keys up to the query's own position.
    Past,
}

/// Bias of attention scores by the distance of query and key (Raffel et al. 2020, section 2.1). All
/// layers share that of the first.
#[derive(Module, Debug)]
struct PositionBias<B: KernelBackend> {
    /// `[buckets, heads]`
    table: Param<Tensor<B, 2>>,
    #[module(skip)]
    buckets: Buckets,
}

impl<B: KernelBackend> PositionBias<B> {
    fn init(
        config: &T5Config,
        direction: Direction,
        heads: &Extent,
        scope: &Scope<'_, '_, B>,
    ) -> Self {
        let buckets = config.relative_attention_num_buckets;
        let source = "block.0.layer.0.SelfAttention.relative_attention_bias";
        let scope = scope.child("bias", source);
        Self {
            table: scope.matrix("table", "weight", buckets, heads),
            buckets: Buckets {
                count: buckets,
                max_distance: config.relative_attention_max_distance,
                direction,
            },
        }
    }

    /// Returns the biases `[heads, queries.len(), keys]` for the keys at `0..keys`.
    fn forward(&self, queries: Range<usize>, keys: usize) -> Tensor<B, 3> {
        let table = self.table.val();
        let [_, heads] = table.dims();
        let count = queries.len();
        let ids: Vec<u32> = queries
            .flat_map(|query| (0..keys).map(move |key| (query, key)))
            .map(|(query, key)| self.buckets.bucket(query, key) as u32)
            .collect();
        select_rows(table, &ids)
            .swap_dims(0, 1)
            .reshape([heads, count, keys])
    }
}

/// Assignment of distances to biases: small distances have a bucket each, larger ones share
/// logarithmically growing buckets.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    count: usize,
    max_distance: usize,
    direction: Direction,
}

impl Buckets {
    fn bucket(&self, query: usize, key: usize) -> usize {
        match self.direction {
            Direction::Past => self.near_or_far(self.count, query.saturating_sub(key)),
            Direction::Both => {
                let side = self.count / 2;
                let first = if key > query { side } else { 0 };
                first + self.near_or_far(side, query.abs_diff(key))
            }
        }
    }

    /// Returns the bucket of a distance among `count`: half of them hold one distance each, the
    /// others grow logarithmically, in the reference's order of operations.
    fn near_or_far(&self, count: usize, distance: usize) -> usize {
        let exact = count / 2;
        if distance < exact {
            return distance;
        }
        let span = (self.max_distance as f64 / exact as f64).ln() as f32;
        let share = (distance as f32 / exact as f32).ln() / span;
        let far = exact + (share * (count - exact) as f32) as usize;
        far.min(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn starts(buckets: Buckets, until: usize) -> Vec<usize> {
        let mut last = usize::MAX;
        (0..until)
            .filter(|&distance| {
                let bucket = buckets.bucket(distance, 0);
                std::mem::replace(&mut last, bucket) != bucket
            })
            .collect()
    }

    /// Start of each bucket in `T5Attention._relative_position_bucket` of the reference.
    #[test]
    fn distances_share_buckets_as_in_the_reference() {
        let cases: [(Direction, usize, usize, &[usize]); 5] = [
            (Direction::Both, 32, 128, &[8, 12, 16, 23, 32, 46, 64, 91]),
            (
                Direction::Past,
                32,
                128,
                &[
                    16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113,
                ],
            ),
            (Direction::Both, 12, 20, &[3, 6, 11]),
            (Direction::Past, 12, 20, &[6, 8, 9, 11, 14, 17]),
            (Direction::Both, 30, 100, &[7, 10, 14, 19, 27, 37, 52, 72]),
        ];
        for (direction, count, max_distance, far) in cases {
            let buckets = Buckets {
                count,
                max_distance,
                direction,
            };
            let near: Vec<usize> = (0..far[0]).collect();
            assert_eq!(starts(buckets, 300), [&near, far].concat());
            let behind = if direction == Direction::Both {
                count / 2 + 1
            } else {
                0
            };
            assert_eq!(buckets.bucket(0, 1), behind);
        }
    }

    #[test]
    fn the_activation_is_the_named_one() {
        let parse = |act: Value| {
            T5Config::parse(&json!({
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": false,
                "dense_act_fn": act,
            }))
            .unwrap()
            .activation()
        };
        assert_eq!(parse(Value::Null).unwrap(), Activation::GeluTanh);
        assert_eq!(parse("gelu_new".into()).unwrap(), Activation::GeluTanh);
        assert_eq!(parse("gelu".into()).unwrap(), Activation::Gelu);
        assert!(parse("softsign".into()).is_err());
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let flan = json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": false});
        assert!(T5Config::parse(&flan).is_ok());
        let mut newer = flan.clone();
        newer["tie_word_embeddings"] = json!(true);
        newer["scale_decoder_outputs"] = json!(false);
        assert!(T5Config::parse(&newer).is_ok());
        for (key, value, part) in [
            ("feed_forward_proj", json!("relu"), "Flan-T5"),
            ("tie_word_embeddings", json!(true), "Flan-T5"),
            ("relative_attention_num_buckets", json!(3), "num_buckets"),
            ("relative_attention_max_distance", json!(16), "max_distance"),
            ("decoder_start_token_id", json!(40_000), "start_token"),
            ("d_kv", json!(0), "d_kv is 0"),
        ] {
            let mut section = flan.clone();
            section[key] = value;
            let error = T5Config::parse(&section).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
