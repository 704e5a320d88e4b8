//! OPT (Zhang et al. 2022, <https://arxiv.org/abs/2205.01068>): a decoder-only language model with
//! learned positions, pre-norm layers and a ReLU feed-forward. The reference is `modeling_opt.py`
//! of `transformers`.
//!
//! The position table is stored as plain f32 and never quantized: it is small, and its rows are
//! added to every token.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, CacheShape, Heads, KernelBackend, cached_attention, select_rows, stage,
};
use serde::Deserialize;
use serde_json::Value;

use crate::config_file::parse_section;
use crate::encoders::block::equal_heads;
use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, StepInput};
use crate::layers::{Embedding, LayerNorm, Linear, activation};
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::reduce::language::DecoderLayers;
use crate::sizes::{self, Section};
use crate::text::step::{Place, finish, run_layers, run_together, scale, weights_of};
use crate::weights::{Part, Scope};

/// Rows of the position table before that of position 0, hard-coded in the reference.
const POSITION_OFFSET: usize = 2;
/// Epsilon of the norms, hard-coded in the reference.
const NORM_EPS: f64 = 1e-5;

/// The language model's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct OptConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Context length of the model.
    pub max_position_embeddings: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Name of the feed-forward layers' activation.
    pub activation_function: String,
    /// `true` for pre-norm layers.
    pub do_layer_norm_before: bool,
    /// `true` if there is no norm after the last layer.
    #[serde(rename = "_remove_final_layer_norm")]
    pub remove_final_layer_norm: bool,
    /// Width of an embedding, if not `hidden_size`.
    pub word_embed_proj_dim: Option<usize>,
    /// `true` if linear layers have a bias.
    pub enable_bias: bool,
    /// `true` if norms have scale and shift.
    pub layer_norm_elementwise_affine: bool,
    /// `true` if the embedding table is also the output head.
    pub tie_word_embeddings: bool,
    /// BOS token, which starts prompts.
    pub bos_token_id: u32,
}

impl Default for OptConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50_272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            max_position_embeddings: 2048,
            num_attention_heads: 12,
            activation_function: "relu".to_owned(),
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
            bos_token_id: 2,
        }
    }
}

impl OptConfig {
    /// Reads the language model's section of `config.json`.
    ///
    /// # Errors
    /// If the configuration is invalid or not supported, as that of OPT-350M (post-norm layers,
    /// projected embeddings).
    pub fn parse(section: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_section("text_config", section)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        let section = Section("text_config");
        section.sizes(&[
            ("vocab_size", self.vocab_size, sizes::VOCABULARY),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            ("ffn_dim", self.ffn_dim, sizes::FFN),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                sizes::POSITIONS,
            ),
            (
                "num_attention_heads",
                self.num_attention_heads,
                sizes::HEADS,
            ),
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        let width = self.word_embed_proj_dim.unwrap_or(self.hidden_size);
        if width != self.hidden_size {
            return Err(ModelError::config(format!(
                "text_config.word_embed_proj_dim is {width}, expected the hidden size {}: \
                 projected embeddings are not supported",
                self.hidden_size
            )));
        }
        if !self.do_layer_norm_before
            || self.remove_final_layer_norm
            || !self.layer_norm_elementwise_affine
        {
            return Err(ModelError::config(
                "text_config: only norms with scale and shift before the blocks and after the \
                 last one are supported (do_layer_norm_before and layer_norm_elementwise_affine \
                 true, _remove_final_layer_norm false)",
            ));
        }
        Ok(())
    }

    fn heads(&self) -> Heads {
        equal_heads(self.num_attention_heads, self.hidden_size)
    }
}

/// The language model.
#[derive(Module, Debug)]
pub struct Opt<B: KernelBackend> {
    embedding: Embedding<B>,
    positions: Param<Tensor<B, 2>>,
    layers: Vec<OptLayer<B>>,
    norm: LayerNorm<B>,
    head: Option<Linear<B>>,
    #[module(skip)]
    config: OptConfig,
}

impl<B: KernelBackend> Opt<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `model` and `lm_head`.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(config: OptConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        config.check()?;
        let scope = scope.part(Part::Text);
        let model = scope.child("", "model.decoder");
        let (hidden, tied) = (config.hidden_size, config.tie_word_embeddings);
        let tokens = scope.dimension("vocabulary", config.vocab_size)?;
        Ok(Self {
            embedding: model.embedding("embedding", "embed_tokens", &tokens, hidden, tied)?,
            positions: model.matrix(
                "positions",
                "embed_positions.weight",
                config.max_position_embeddings + POSITION_OFFSET,
                hidden,
            ),
            layers: model
                .layers("layers", config.num_hidden_layers, |i| {
                    format!("layers.{i}")
                })?
                .iter()
                .map(|scope| OptLayer::init(&config, scope))
                .collect::<Result<_, _>>()?,
            norm: model.layer_norm("norm", "final_layer_norm", hidden, NORM_EPS),
            head: (!tied)
                .then(|| {
                    let normed = scope.normed("norm", hidden);
                    scope.linear("head", &[("lm_head", &tokens)], normed, false)
                })
                .transpose()?,
            config,
        })
    }
}

impl<B: KernelBackend> LanguageModel<B> for Opt<B> {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocabulary(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn cache_shape(&self, capacity: usize) -> CacheShape {
        let heads = self.config.heads();
        CacheShape {
            layers: self.config.num_hidden_layers,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            capacity,
            quantized: self.layers.iter().all(|layer| layer.qkv.is_quantized()),
        }
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
        let x = self.enter(&input);
        let x = self.run(x, &input, 0..self.layers.len(), state, monitor)?;
        Ok(self.finish(x))
    }

    fn step_together(
        &self,
        input: StepInput<'_, B>,
        states: &mut [&mut DecoderState<B>],
    ) -> Result<Tensor<B, 2>, ModelError> {
        let (heads, x) = (self.config.heads(), self.enter(&input));
        let window = |_| None;
        let x = run_together(x, &self.layers, window, states, |layer, x, mut together| {
            layer.forward(x, together.place(), |qkv| {
                together.attend(qkv, |_, qkv, cache, place| {
                    attend::<B>(qkv, heads, cache, place)
                })
            })
        });
        Ok(self.finish(x))
    }

    fn decoder_layers(&self) -> Option<&dyn DecoderLayers<B>> {
        Some(self)
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let _text = stage::scope(format_args!("text"));
        let _stage = stage::module("head");
        match &self.head {
            Some(head) => head.forward(hidden),
            None => self.embedding.as_linear(hidden),
        }
    }
}

impl<B: KernelBackend> DecoderLayers<B> for Opt<B> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Adds the learned positions.
    fn enter(&self, input: &StepInput<'_, B>) -> Tensor<B, 2> {
        let _text = stage::scope(format_args!("text"));
        let rows: Vec<u32> = input
            .positions
            .iter()
            .map(|position| position[0] + POSITION_OFFSET as u32)
            .collect();
        input.embeddings.clone() + select_rows(self.positions.val(), &rows)
    }

    fn run(
        &self,
        x: Tensor<B, 2>,
        input: &StepInput<'_, B>,
        layers: Range<usize>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let heads = self.config.heads();
        run_layers(
            input,
            x,
            (&self.layers, layers),
            |_| None,
            &mut state.cache,
            monitor,
            |layer, x, cache, place| {
                layer.forward(x, place, |qkv| attend::<B>(qkv, heads, cache, place))
            },
        )
    }

    fn attention_row(
        &self,
        layer: usize,
        x: Tensor<B, 2>,
        _position: Position,
        keys: Range<usize>,
        state: &DecoderState<B>,
    ) -> Tensor<B, 2> {
        let (heads, weights) = (self.config.heads(), &self.layers[layer]);
        let query = || weights.qkv.forward(weights.attention_norm.forward(x));
        weights_of::<B>((layer, heads), query, &state.cache, keys, scale(heads))
    }

    fn finish(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        finish(|x| self.norm.forward(x), x)
    }
}

#[derive(Module, Debug)]
struct OptLayer<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> OptLayer<B> {
    fn init(config: &OptConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (width, bias) = (config.hidden_size, config.enable_bias);
        let ffn = scope.dimension("ffn", config.ffn_dim)?;
        let activation = activation(
            "text_config.activation_function",
            &config.activation_function,
        )?;
        let normed = |norm| scope.normed(norm, width);
        let attended = scope.produced("qkv", 2 * width, width);
        let hidden = scope.activated("up", activation, &ffn);
        let attention = scope.child("", "self_attn");
        let qkv = [("q_proj", width), ("k_proj", width), ("v_proj", width)];
        Ok(Self {
            attention_norm: scope.layer_norm(
                "attention_norm",
                "self_attn_layer_norm",
                width,
                NORM_EPS,
            ),
            qkv: attention.linear("qkv", &qkv, normed("attention_norm"), bias)?,
            out: attention.linear("out", &[("out_proj", width)], attended, bias)?,
            mlp_norm: scope.layer_norm("mlp_norm", "final_layer_norm", width, NORM_EPS),
            up: scope.linear("up", &[("fc1", &ffn)], normed("mlp_norm"), bias)?,
            down: scope.linear("down", &[("fc2", width)], hidden, bias)?,
            activation,
        })
    }

    /// Runs the layer. `attend` appends queries, keys and values to the cache and returns the result
    /// of attention: `[tokens, hidden_size]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        place: Place<'_>,
        attend: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let x = {
            let _stage = stage::module("attention");
            let attended = attend(self.qkv.forward(self.attention_norm.forward(x.clone())));
            place.close_attention(&self.out, attended, x)
        };
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        self.up
            .feed_forward(normed, self.activation, &self.down, Some(x))
    }
}

/// Appends the tokens of `qkv` to a layer of the cache and lets them attend to it.
fn attend<B: KernelBackend>(
    qkv: Tensor<B, 2>,
    heads: Heads,
    cache: &mut B::KvCache,
    place: Place<'_>,
) -> Tensor<B, 2> {
    let (mask, scale) = (place.mask(), scale(heads));
    cached_attention::<B>(qkv, heads, cache, place.layer, mask, None, scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Rejects OPT-350M and invalid configurations.
    #[test]
    fn what_is_not_supported_is_refused() {
        for (section, part) in [
            (json!({"word_embed_proj_dim": 512}), "word_embed_proj_dim"),
            (json!({"do_layer_norm_before": false}), "norms"),
            (json!({"num_attention_heads": 5}), "5 heads"),
            (json!({"ffn_dim": 0}), "ffn_dim is 0"),
        ] {
            let error = OptConfig::parse(&section).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
