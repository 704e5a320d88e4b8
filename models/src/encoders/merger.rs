//! The merger of Qwen2-VL (Wang et al. 2024, section 2.1): maps a square of patches to one token of
//! the language model.

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, KernelBackend};

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, RmsNorm};
use crate::weights::Scope;

/// A normalization of rows.
pub trait Norm<B: KernelBackend> {
    /// Normalizes every row.
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2>;
}

impl<B: KernelBackend> Norm<B> for LayerNorm<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        LayerNorm::forward(self, x)
    }
}

impl<B: KernelBackend> Norm<B> for RmsNorm<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        RmsNorm::forward(self, x)
    }
}

/// Sizes of a [`Merger`].
#[derive(Debug, Clone, Copy)]
pub struct MergerConfig {
    /// Width of a patch embedding.
    pub patch_width: usize,
    /// Patches per side of a token.
    pub merge: usize,
    /// Width of a token.
    pub token_width: usize,
}

/// A norm over patches, followed by an MLP over the patches of each token.
#[derive(Module, Debug)]
pub struct Merger<B: KernelBackend, N: Module<B>> {
    norm: N,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    group: usize,
}

impl<B: KernelBackend, N: Module<B> + Norm<B>> Merger<B, N> {
    /// Declares the weights; `norm` declares those of the norm under the given names.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(
        config: MergerConfig,
        scope: &Scope<'_, '_, B>,
        norm: impl FnOnce(&Scope<'_, '_, B>, &str, &str, usize) -> N,
    ) -> Result<Self, ModelError> {
        let group = config.merge * config.merge;
        let width = config.patch_width * group;
        let normed = scope.repeated("norm", 0, width, config.patch_width, group);
        Ok(Self {
            norm: norm(scope, "norm", "ln_q", config.patch_width),
            up: scope.linear("up", &[("mlp.0", width)], normed, true)?,
            down: scope.linear("down", &[("mlp.2", config.token_width)], width, true)?,
            group,
        })
    }

    /// Merges the patches of each token.
    ///
    /// # Shapes
    /// - input: `[patches, patch_width]`, patches of a token adjacent;
    ///   output: `[patches / merge², token_width]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [patches, width] = x.dims();
        let x = self
            .norm
            .forward(x)
            .reshape([patches / self.group, width * self.group]);
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }
}
