//! The Q-Former of BLIP-2 (Li et al. 2023, <https://arxiv.org/abs/2301.12597>, section 3.1): a
//! fixed number of learned queries that attend to each other and, in some layers, to the features
//! of an image. The reference is `Blip2QFormerModel` in `modeling_blip_2.py` of `transformers`,
//! without its text branch.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, Columns, Heads, KernelBackend, Mask, attention, stage};
use serde::Deserialize;

use crate::encoders::block::equal_heads;
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, activation};
use crate::sizes::{self, Section};
use crate::weights::{Inputs, Scope};

/// The Q-Former's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct QFormerConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Interval of layers with cross-attention to the image, starting with the first layer.
    pub cross_attention_frequency: usize,
    /// Name of the feed-forward layers' activation.
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Kind of position embeddings.
    pub position_embedding_type: String,
    /// `true` if the tokens of the question take part, as in InstructBLIP.
    pub use_qformer_text_input: bool,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            cross_attention_frequency: 2,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".to_owned(),
            use_qformer_text_input: false,
        }
    }
}

impl QFormerConfig {
    fn check(&self, queries: usize) -> Result<(), ModelError> {
        Section("").sizes(&[("num_query_tokens", queries, 1 << 12)])?;
        let section = Section("qformer_config");
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
                "cross_attention_frequency",
                self.cross_attention_frequency,
                sizes::LAYERS,
            ),
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        section.only(
            "position_embedding_type",
            &self.position_embedding_type,
            "absolute",
        )?;
        if self.use_qformer_text_input {
            return Err(ModelError::config(
                "qformer_config.use_qformer_text_input is true: a Q-Former that reads the \
                 question is not supported",
            ));
        }
        Ok(())
    }
}

/// The Q-Former with its queries.
#[derive(Module, Debug)]
pub struct QFormer<B: KernelBackend> {
    queries: Param<Tensor<B, 2>>,
    norm: LayerNorm<B>,
    layers: Vec<QFormerLayer<B>>,
    #[module(skip)]
    count: usize,
    #[module(skip)]
    heads: Heads,
}

impl<B: KernelBackend> QFormer<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `query_tokens` and `qformer`.
    /// `features` describes the image features.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(
        config: &QFormerConfig,
        queries: usize,
        features: &Inputs,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        config.check(queries)?;
        let width = config.hidden_size;
        let module = scope.child("", "qformer");
        Ok(Self {
            // Stored as [1, queries, width].
            queries: scope.matrix("queries", "query_tokens", 1, queries * width),
            norm: module.layer_norm("norm", "layernorm", width, config.layer_norm_eps),
            layers: module
                .layers("layers", config.num_hidden_layers, |i| {
                    format!("encoder.layer.{i}")
                })?
                .iter()
                .enumerate()
                .map(|(i, scope)| {
                    let looks = i.is_multiple_of(config.cross_attention_frequency);
                    QFormerLayer::init(config, looks.then_some(features), scope)
                })
                .collect::<Result<_, _>>()?,
            count: queries,
            heads: equal_heads(config.num_attention_heads, width),
        })
    }

    /// Describes the outputs as inputs of the next layer; `scope` is that of [`Self::init`].
    pub fn outputs(config: &QFormerConfig, scope: &Scope<'_, '_, B>) -> Inputs {
        let last = config.num_hidden_layers.saturating_sub(1);
        scope.normed(&format!("layers.{last}.mlp_norm"), config.hidden_size)
    }

    /// Returns the number of tokens per image.
    pub fn queries(&self) -> usize {
        self.count
    }

    /// Attends with the queries to the features of an image.
    ///
    /// # Shapes
    /// - features: `[tokens, encoder_width]`, result: `[queries, hidden_size]`
    pub fn forward(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        let width = self.heads.heads * self.heads.head_dim;
        let mut x = self
            .norm
            .forward(self.queries.val().reshape([self.count, width]));
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = stage::scope(format_args!("layers.{i}"));
            x = layer.forward(x, &features, self.heads);
        }
        x
    }
}

#[derive(Module, Debug)]
struct QFormerLayer<B: KernelBackend> {
    attention: SelfAttention<B>,
    cross_attention: Option<CrossAttention<B>>,
    up: Linear<B>,
    down: Linear<B>,
    mlp_norm: LayerNorm<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> QFormerLayer<B> {
    fn init(
        config: &QFormerConfig,
        features: Option<&Inputs>,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let activation = activation("qformer_config.hidden_act", &config.hidden_act)?;
        let hidden = scope.activated("up", activation, &ffn);
        let output = scope.child("", "output_query");
        Ok(Self {
            attention: SelfAttention::init(config, &scope.child("attention", "attention"))?,
            cross_attention: features
                .map(|features| {
                    let scope = scope.child("cross_attention", "crossattention");
                    CrossAttention::init(config, features, &scope)
                })
                .transpose()?,
            up: scope.linear("up", &[("intermediate_query.dense", &ffn)], width, true)?,
            down: output.linear("down", &[("dense", width)], hidden, true)?,
            mlp_norm: output.layer_norm("mlp_norm", "LayerNorm", width, config.layer_norm_eps),
            activation,
        })
    }

    fn forward(&self, x: Tensor<B, 2>, features: &Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let mut x = {
            let _stage = stage::module("attention");
            self.attention.forward(x, heads)
        };
        if let Some(cross_attention) = &self.cross_attention {
            let _stage = stage::module("cross_attention");
            x = cross_attention.forward(x, features, heads);
        }
        let _stage = stage::module("mlp");
        let added = self
            .up
            .feed_forward(x.clone(), self.activation, &self.down, Some(x));
        self.mlp_norm.forward(added)
    }
}

fn scale(heads: Heads) -> f32 {
    (heads.head_dim as f32).powf(-0.5)
}

#[derive(Module, Debug)]
struct SelfAttention<B: KernelBackend> {
    qkv: Linear<B>,
    out: Linear<B>,
    norm: LayerNorm<B>,
}

impl<B: KernelBackend> SelfAttention<B> {
    fn init(config: &QFormerConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let output = scope.child("", "output");
        let qkv = [("query", width), ("key", width), ("value", width)];
        let attended = scope.produced("qkv", 2 * width, width);
        Ok(Self {
            qkv: scope
                .child("", "attention")
                .linear("qkv", &qkv, width, true)?,
            out: output.linear("out", &[("dense", width)], attended, true)?,
            norm: output.layer_norm("norm", "LayerNorm", width, config.layer_norm_eps),
        })
    }

    fn forward(&self, x: Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let width = heads.heads * heads.head_dim;
        let qkv = self.qkv.forward(x.clone());
        let [k, v] = [1, 2].map(|i| Columns {
            tensor: qkv.clone(),
            column: i * width,
        });
        let attended = attention(qkv, k, v, heads, Mask::Full, None, scale(heads));
        self.norm.forward(self.out.forward_residual(attended, x))
    }
}

#[derive(Module, Debug)]
struct CrossAttention<B: KernelBackend> {
    q: Linear<B>,
    kv: Linear<B>,
    out: Linear<B>,
    norm: LayerNorm<B>,
}

impl<B: KernelBackend> CrossAttention<B> {
    fn init(
        config: &QFormerConfig,
        features: &Inputs,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let attended = scope.produced("kv", width, width);
        let attention = scope.child("", "attention");
        let output = scope.child("", "output");
        let kv = [("key", width), ("value", width)];
        Ok(Self {
            q: attention.linear("q", &[("query", width)], width, true)?,
            kv: attention.linear("kv", &kv, features.clone(), true)?,
            out: output.linear("out", &[("dense", width)], attended, true)?,
            norm: output.layer_norm("norm", "LayerNorm", width, config.layer_norm_eps),
        })
    }

    fn forward(&self, x: Tensor<B, 2>, features: &Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let q = self.q.forward(x.clone());
        let kv = self.kv.forward(features.clone());
        let v = Columns {
            tensor: kv.clone(),
            column: heads.heads * heads.head_dim,
        };
        let attended = attention(q, kv, v, heads, Mask::Full, None, scale(heads));
        self.norm.forward(self.out.forward_residual(attended, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_refused() {
        let with = |change: fn(&mut QFormerConfig)| {
            let mut config = QFormerConfig::default();
            change(&mut config);
            config.check(32).unwrap_err().to_string()
        };
        assert!(with(|c| c.use_qformer_text_input = true).contains("reads the question"));
        assert!(with(|c| c.cross_attention_frequency = 0).contains("frequency is 0"));
        assert!(with(|c| c.num_attention_heads = 7).contains("7 heads"));
        assert!(with(|c| c.position_embedding_type = "relative_key".into()).contains("absolute"));
        assert!(QFormerConfig::default().check(0).is_err());
    }
}
