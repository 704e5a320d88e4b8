//! The layer of Qwen3.5 that predicts further tokens. Norms of the next token's embedding and of the
//! hidden state are joined, projected to the width of the model and pass a layer with attention and a
//! norm; embeddings and head are the model's. The reference is `qwen3_5_mtp.py` of vLLM.

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{CacheShape, KernelBackend, KvStore, stage};

use super::{Layer, Qwen35TextConfig};
use crate::error::ModelError;
use crate::language::OutputRows;
use crate::layers::{Linear, RmsNorm};
use crate::layout::Position;
use crate::mtp::MtpLayer;
use crate::text::step::Place;
use crate::weights::Scope;

/// The layer.
#[derive(Module, Debug)]
pub(super) struct Mtp<B: KernelBackend> {
    embedding_norm: RmsNorm<B>,
    hidden_norm: RmsNorm<B>,
    /// Takes the embedding, then the hidden state.
    fc: Linear<B>,
    layer: Layer<B>,
    norm: RmsNorm<B>,
    #[module(skip)]
    config: Qwen35TextConfig,
}

impl<B: KernelBackend> Mtp<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &Qwen35TextConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let norm = |name: &str, source: &str| {
            scope.zero_centered_rms_norm(name, source, hidden, config.norm_eps)
        };
        Ok(Self {
            embedding_norm: norm("embedding_norm", "pre_fc_norm_embedding"),
            hidden_norm: norm("hidden_norm", "pre_fc_norm_hidden"),
            fc: scope.linear("fc", &[("fc", hidden)], 2 * hidden, false)?,
            layer: Layer::init(config, true, &scope.child("layer", "layers.0"))?,
            norm: norm("norm", "norm"),
            config: config.clone(),
        })
    }
}

impl<B: KernelBackend> MtpLayer<B> for Mtp<B> {
    fn cache_shape(&self, capacity: usize) -> CacheShape {
        let heads = self.config.heads;
        let attention = self.layer.attention.as_ref();
        CacheShape {
            layers: 1,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            capacity,
            quantized: attention.is_some_and(|attention| attention.qkv.is_quantized()),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<B, 2>,
        next: Tensor<B, 2>,
        positions: &[Position],
        output: OutputRows,
        cache: &mut B::KvCache,
    ) -> Tensor<B, 2> {
        let _scope = stage::scope(format_args!("text.mtp"));
        let x = {
            let _stage = stage::module("input");
            let embeddings = self.embedding_norm.forward(next);
            let joined = Tensor::cat(vec![embeddings, self.hidden_norm.forward(hidden)], 1);
            self.fc.forward(joined)
        };
        let table = self.config.rotary_table(positions, &x.device());
        let place = Place {
            layer: 0,
            visible: None,
            last_row: output == OutputRows::Last,
        };
        let normed = self.layer.attention_norm.forward(x.clone());
        let x = match &self.layer.attention {
            Some(attention) => {
                attention.forward(normed, x, (&table, self.config.heads), cache, place)
            }
            None => x,
        };
        cache.advance(positions.len());
        self.norm.forward(self.layer.mlp(x))
    }
}
