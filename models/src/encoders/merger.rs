//! The merger of Qwen2-VL (Wang et al. 2024, section 2.1) and Qwen3-VL: maps a square of patches to
//! one token of the language model.

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

/// Names of a merger's modules in the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct MergerNames {
    /// The norm.
    pub norm: &'static str,
    /// The two layers of the MLP.
    pub mlp: [&'static str; 2],
}

impl MergerNames {
    /// Names in Qwen2-VL and Qwen2.5-VL.
    pub const QWEN2_VL: Self = Self {
        norm: "ln_q",
        mlp: ["mlp.0", "mlp.2"],
    };
    /// Names in Qwen3-VL.
    pub const QWEN3_VL: Self = Self {
        norm: "norm",
        mlp: ["linear_fc1", "linear_fc2"],
    };
}

/// The rows that a merger normalizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergerNorm {
    /// Every patch.
    Patches,
    /// All patches of a token together.
    Tokens,
}

/// A norm, followed by an MLP over the patches of each token.
#[derive(Module, Debug)]
pub struct Merger<B: KernelBackend, N: Module<B>> {
    norm: N,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    group: usize,
    #[module(skip)]
    over: MergerNorm,
}

impl<B: KernelBackend, N: Module<B> + Norm<B>> Merger<B, N> {
    /// Declares the weights; `norm` declares those of the norm under the given names.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(
        config: MergerConfig,
        (names, over): (MergerNames, MergerNorm),
        scope: &Scope<'_, '_, B>,
        norm: impl FnOnce(&Scope<'_, '_, B>, &str, &str, usize) -> N,
    ) -> Result<Self, ModelError> {
        let group = config.merge * config.merge;
        let width = config.patch_width * group;
        let normed_width = match over {
            MergerNorm::Patches => config.patch_width,
            MergerNorm::Tokens => width,
        };
        let normed = scope.repeated("norm", 0, width, normed_width, width / normed_width);
        Ok(Self {
            norm: norm(scope, "norm", names.norm, normed_width),
            up: scope.linear("up", &[(names.mlp[0], width)], normed, true)?,
            down: scope.linear("down", &[(names.mlp[1], config.token_width)], width, true)?,
            group,
            over,
        })
    }

    /// Merges the patches of each token.
    ///
    /// # Shapes
    /// - input: `[patches, patch_width]`, patches of a token adjacent;
    ///   output: `[patches / merge², token_width]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [patches, width] = x.dims();
        let joined = |x: Tensor<B, 2>| x.reshape([patches / self.group, width * self.group]);
        let x = match self.over {
            MergerNorm::Patches => joined(self.norm.forward(x)),
            MergerNorm::Tokens => self.norm.forward(joined(x)),
        };
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }
}
