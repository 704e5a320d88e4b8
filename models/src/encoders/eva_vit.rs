//! The vision transformer of EVA-CLIP (Fang et al. 2022, <https://arxiv.org/abs/2211.07636>), used
//! by BLIP-2: square images in square patches, a class token, learned positions, pre-norm layers
//! with fused queries, keys and values, a norm at the end. The reference is `Blip2VisionModel` in
//! `modeling_blip_2.py` of `transformers`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;

use crate::encoders::block::{Block, BlockConfig, BlockNames, equal_heads};
use crate::encoders::clip::of_patches;
use crate::encoders::square_patches::SquarePatches;
use crate::encoders::tower::{Scopes, Tower, TowerOutput};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, activation};
use crate::monitor::Monitor;
use crate::reduce::Reductions;
use crate::reduce::merge::Units;
use crate::sizes::{self, Section};
use crate::weights::{Inputs, Scope};

const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    qkv: &["self_attn.qkv"],
    out: "self_attn.projection",
    mlp: ["mlp.fc1", "mlp.fc2"],
};

/// Channels of an image; the reference hard-codes them.
const CHANNELS: usize = 3;

/// The tower's section of `config.json`, with the defaults of the reference (ViT-g).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct EvaVitConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of an image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Name of the MLP's activation.
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// `true` if queries, keys and values have a bias (that of the keys is zero).
    pub qkv_bias: bool,
}

impl Default for EvaVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
        }
    }
}

impl EvaVitConfig {
    fn check(&self) -> Result<(), ModelError> {
        let section = Section("vision_config");
        section.sizes(&[
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_hidden_layers", self.num_hidden_layers, sizes::LAYERS),
            (
                "num_attention_heads",
                self.num_attention_heads,
                sizes::HEADS,
            ),
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        self.grid().check(section)
    }

    fn grid(&self) -> SquarePatches {
        SquarePatches {
            channels: CHANNELS,
            image_size: self.image_size,
            patch_size: self.patch_size,
        }
    }

    /// Returns the number of patches of an image and the number of values of a patch.
    pub fn patches_shape(&self) -> [usize; 2] {
        [self.grid().count(), self.grid().width()]
    }

    /// Cuts the patches with the given numbers from an image, see `SquarePatches::cut`.
    pub fn cut_patches(&self, image: &[f32], numbers: impl IntoIterator<Item = usize>) -> Vec<f32> {
        self.grid().cut(image, numbers)
    }

    /// Returns the number of patches per side of an image.
    pub fn side(&self) -> usize {
        self.grid().side()
    }
}

/// The vision tower.
#[derive(Module, Debug)]
pub struct EvaVit<B: KernelBackend> {
    patch_embed: Linear<B>,
    class_embedding: Param<Tensor<B, 2>>,
    position_embedding: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    #[module(skip)]
    config: EvaVitConfig,
}

impl<B: KernelBackend> EvaVit<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `embeddings` and `encoder`.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(config: &EvaVitConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        config.check()?;
        let block = BlockConfig {
            heads: equal_heads(config.num_attention_heads, config.hidden_size),
            ffn: config.intermediate_size,
            activation: activation("vision_config.hidden_act", &config.hidden_act)?,
            eps: config.layer_norm_eps,
            qkv_bias: config.qkv_bias,
            names: &BLOCK_NAMES,
        };
        let [count, patch_width] = config.patches_shape();
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = scope.child("", "embeddings");
        let patches = [("patch_embedding", width)];
        Ok(Self {
            patch_embed: embeddings.linear("patch_embed", &patches, patch_width, true)?,
            class_embedding: embeddings.matrix("class_embedding", "class_embedding", 1, width),
            // Stored as [1, positions, width].
            position_embedding: embeddings.matrix(
                "position_embedding",
                "position_embedding",
                1,
                (count + 1) * width,
            ),
            blocks: scope
                .layers("blocks", config.num_hidden_layers, |i| {
                    format!("encoder.layers.{i}")
                })?
                .iter()
                .map(|scope| Block::init(block, scope))
                .collect::<Result<_, _>>()?,
            norm: scope.layer_norm("norm", "post_layernorm", width, eps),
            config: config.clone(),
        })
    }

    /// Describes the features as inputs of the layers after the tower, all of which must be declared
    /// with them; `scope` is that of [`Self::init`].
    pub fn outputs(config: &EvaVitConfig, scope: &Scope<'_, '_, B>) -> Inputs {
        scope.normed("norm", config.hidden_size)
    }

    /// Returns the normalized hidden states of an image.
    ///
    /// # Shapes
    /// - patches: `[units, 3 * patch_size * patch_size]` from [`EvaVitConfig::cut_patches`]
    /// - result: `[1 + units, hidden_size]`, class token first
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub(crate) fn forward(
        &self,
        patches: Tensor<B, 2>,
        units: Units,
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let x = {
            let _stage = stage::module("patch_embed");
            self.embed(patches, &units.ids)
        };
        probe::capture("patch_embed", &x);
        let tower = Tower {
            layers: &self.blocks,
            table: None,
            leading: 1,
            scopes: Scopes::Whole,
            methods,
            inner: &[],
        };
        let mut output = tower.run(x, units, monitor)?;
        output.x = self.norm.forward(output.x);
        Ok(output)
    }

    fn embed(&self, patches: Tensor<B, 2>, places: &[usize]) -> Tensor<B, 2> {
        let [count, _] = self.config.patches_shape();
        let shape = [1 + count, self.config.hidden_size];
        let positions = self.position_embedding.val().reshape(shape);
        let class = self.class_embedding.val() + positions.clone().narrow(0, 0, 1);
        let positions = of_patches(positions, places);
        let patches = self.patch_embed.forward_residual(patches, positions);
        Tensor::cat(vec![class, patches], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused() {
        let narrow = EvaVitConfig {
            num_attention_heads: 15,
            ..EvaVitConfig::default()
        };
        let coarse = EvaVitConfig {
            patch_size: 300,
            ..EvaVitConfig::default()
        };
        let empty = EvaVitConfig {
            num_hidden_layers: 0,
            ..EvaVitConfig::default()
        };
        for (config, part) in [(narrow, "15 heads"), (coarse, "larger"), (empty, "is 0")] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
