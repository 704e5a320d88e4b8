//! The vision transformer of CLIP (Radford et al. 2021, <https://arxiv.org/abs/2103.00020>), used
//! by LLaVA and Phi-3.5-Vision: square images in square patches, a class token, learned positions,
//! a norm before the first layer. The reference is `modeling_clip.py` of `transformers`.
//!
//! Both models use the hidden states of an inner layer. The layers after it and the last norm have
//! no effect, so they are neither run nor stored.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;

use crate::encoders::block::{Block, BlockConfig, BlockNames, equal_heads};
use crate::encoders::square_patches::SquarePatches;
use crate::encoders::tower::{Scopes, Tower, TowerOutput};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, activation};
use crate::monitor::Monitor;
use crate::reduce::Reductions;
use crate::reduce::merge::Units;
use crate::reduce::rows::indices;
use crate::sizes::{self, Section};
use crate::weights::Scope;

const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
};

/// The tower's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers of the whole tower.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of an image.
    pub num_channels: usize,
    /// Side of an image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Name of the MLP's activation.
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipConfig {
    /// Returns the configuration of `openai/clip-vit-large-patch14-336`.
    pub fn large_patch14_336() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            ..Self::default()
        }
    }

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
        self.grid().check(section)?;
        if self.num_channels != 3 {
            return Err(ModelError::config(format!(
                "vision_config.num_channels is {}, expected 3: images are RGB",
                self.num_channels
            )));
        }
        Ok(())
    }

    fn grid(&self) -> SquarePatches {
        SquarePatches {
            channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
        }
    }

    /// Returns the number of patches per side of an image; pixels beyond the last whole patch are
    /// ignored.
    pub fn side(&self) -> usize {
        self.grid().side()
    }

    /// Returns the number of patches of an image.
    pub fn patches(&self) -> usize {
        self.grid().count()
    }

    /// Returns the number of values of a patch.
    pub fn patch_width(&self) -> usize {
        self.grid().width()
    }

    /// Returns the number of values of an image.
    pub fn image_len(&self) -> usize {
        self.num_channels * self.image_size * self.image_size
    }

    /// Returns the number of layers to run for `hidden_states[index]` of the reference, where 0 is
    /// the input of the first layer and negative indices count from the end.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn layers_until(&self, index: i64) -> Result<usize, ModelError> {
        let states = self.num_hidden_layers as i64 + 1;
        let wanted = if index < 0 { states + index } else { index };
        if !(0..states).contains(&wanted) {
            return Err(ModelError::config(format!(
                "the configuration requests the features of layer {index}, the vision tower has \
                 {} layers",
                self.num_hidden_layers
            )));
        }
        Ok(wanted as usize)
    }
}

/// The first layers of the tower.
#[derive(Module, Debug)]
pub struct ClipVisionTower<B: KernelBackend> {
    patch_embed: Linear<B>,
    class_embedding: Param<Tensor<B, 1>>,
    position_embedding: Param<Tensor<B, 2>>,
    pre_norm: LayerNorm<B>,
    blocks: Vec<Block<B>>,
}

impl<B: KernelBackend> ClipVisionTower<B> {
    /// Declares the embeddings and the first `layers` layers; `scope` is the checkpoint prefix of
    /// `embeddings` and `encoder`.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(
        config: &ClipConfig,
        layers: usize,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let block = BlockConfig {
            heads: equal_heads(config.num_attention_heads, config.hidden_size),
            ffn: config.intermediate_size,
            activation: activation("vision_config.hidden_act", &config.hidden_act)?,
            eps: config.layer_norm_eps,
            qkv_bias: true,
            names: &BLOCK_NAMES,
        };
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = scope.child("", "embeddings");
        Ok(Self {
            patch_embed: embeddings.linear(
                "patch_embed",
                &[("patch_embedding", width)],
                config.patch_width(),
                false,
            )?,
            class_embedding: embeddings.vector("class_embedding", &[("class_embedding", width)]),
            position_embedding: embeddings.matrix(
                "position_embedding",
                "position_embedding.weight",
                config.patches() + 1,
                width,
            ),
            // The typo is part of the checkpoint's name.
            pre_norm: scope.layer_norm("pre_norm", "pre_layrnorm", width, eps),
            blocks: scope
                .layers("blocks", layers, |i| format!("encoder.layers.{i}"))?
                .iter()
                .map(|scope| Block::init(block, scope))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Returns the number of stored layers.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Runs the stored layers over the patches of an image.
    ///
    /// # Shapes
    /// - patches: `[units * rows, channels * patch_size * patch_size]`, the patches with the numbers
    ///   `places` in raster order
    /// - result: `[1 + units * rows, hidden_size]`, class token first
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub(crate) fn forward(
        &self,
        patches: Tensor<B, 2>,
        places: &[usize],
        units: Units,
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let x = {
            let _stage = stage::module("patch_embed");
            self.embed(patches, places)
        };
        probe::capture("patch_embed", &x);
        let x = self.pre_norm.forward(x);
        let tower = Tower {
            layers: &self.blocks,
            table: None,
            leading: 1,
            scopes: Scopes::Whole,
            methods,
            inner: &[],
        };
        tower.run(x, units, monitor)
    }

    fn embed(&self, patches: Tensor<B, 2>, places: &[usize]) -> Tensor<B, 2> {
        let positions = self.position_embedding.val();
        let class = self.class_embedding.val().unsqueeze::<2>() + positions.clone().narrow(0, 0, 1);
        let positions = of_patches(positions, places);
        let patches = self.patch_embed.forward_residual(patches, positions);
        Tensor::cat(vec![class, patches], 0)
    }
}

/// Returns the position embeddings of the patches at `places`, without that of the class token.
pub(crate) fn of_patches<B: KernelBackend>(
    positions: Tensor<B, 2>,
    places: &[usize],
) -> Tensor<B, 2> {
    let count = positions.dims()[0] - 1;
    let positions = positions.narrow(0, 1, count);
    match places.iter().copied().eq(0..count) {
        true => positions,
        false => positions
            .clone()
            .select(0, indices(places, &positions.device())),
    }
}

/// Cuts the patches with the given numbers from an image, see `SquarePatches::cut`.
pub fn cut_patches(
    image: &[f32],
    config: &ClipConfig,
    numbers: impl IntoIterator<Item = usize>,
) -> Vec<f32> {
    config.grid().cut(image, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClipConfig {
        ClipConfig {
            num_hidden_layers: 5,
            ..ClipConfig::default()
        }
    }

    #[test]
    fn feature_layers_count_from_both_ends() {
        let layers = |index| config().layers_until(index).unwrap();
        assert_eq!([layers(-1), layers(-2), layers(0), layers(3)], [5, 4, 0, 3]);
        for index in [-7, 6] {
            let error = config().layers_until(index).unwrap_err().to_string();
            assert!(error.contains("has 5 layers"), "{error}");
        }
    }
}
