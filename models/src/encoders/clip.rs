//! The vision transformer of CLIP (Radford et al. 2021, <https://arxiv.org/abs/2103.00020>), used
//! by LLaVA and Phi-3.5-Vision: square images in square patches, a class token, learned positions,
//! a norm before the first layer. The reference is `modeling_clip.py` of `transformers`.
//!
//! Both models use the hidden states of an inner layer. The layers after it and the last norm have
//! no effect, so they are neither run nor stored.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, Columns, Heads, KernelBackend, Mask, encoder_attention, probe, stage,
};
use serde::Deserialize;

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::monitor::Monitor;
use crate::weights::Scope;

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
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("image_size", self.image_size, 1 << 13),
            ("patch_size", self.patch_size, 1 << 10),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return Err(ModelError::config(format!(
                    "vision_config.{name} is {size}, expected 1 to {limit}"
                )));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(ModelError::config(format!(
                "vision_config: width {} is not divisible by {} heads",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if self.num_channels != 3 {
            return Err(ModelError::config(format!(
                "vision_config.num_channels is {}, expected 3: images are RGB",
                self.num_channels
            )));
        }
        if self.patch_size > self.image_size {
            return Err(ModelError::config(format!(
                "vision_config: a patch of {} pixels is larger than an image of {}",
                self.patch_size, self.image_size
            )));
        }
        Ok(())
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => Err(ModelError::config(format!(
                "vision_config.hidden_act is {other:?}, expected \"quick_gelu\" or \"gelu\""
            ))),
        }
    }

    /// Returns the number of patches per side of an image; pixels beyond the last whole patch are
    /// ignored.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Returns the number of patches of an image.
    pub fn patches(&self) -> usize {
        self.side() * self.side()
    }

    /// Returns the number of values of a patch.
    pub fn patch_width(&self) -> usize {
        self.num_channels * self.patch_size * self.patch_size
    }

    /// Returns the number of values of an image.
    pub fn picture_len(&self) -> usize {
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

    fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads,
        }
    }
}

/// The first layers of the tower.
#[derive(Module, Debug)]
pub struct ClipVisionTower<B: KernelBackend> {
    patch_embed: Linear<B>,
    class_embedding: Param<Tensor<B, 1>>,
    position_embedding: Param<Tensor<B, 2>>,
    pre_norm: LayerNorm<B>,
    blocks: Vec<ClipBlock<B>>,
    #[module(skip)]
    config: ClipConfig,
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
        let activation = config.activation()?;
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
            blocks: (0..layers)
                .map(|i| {
                    let source = format!("encoder.layers.{i}");
                    let scope = scope.child(&format!("blocks.{i}"), &source);
                    ClipBlock::init(config, activation, &scope)
                })
                .collect::<Result<_, _>>()?,
            config: config.clone(),
        })
    }

    /// Returns the hidden states of an image after the last stored layer, class token first.
    ///
    /// # Shapes
    /// - patches: `[patches, channels * patch_size * patch_size]` from [`cut_patches`]
    /// - result: `[1 + patches, hidden_size]`
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn forward(
        &self,
        patches: Tensor<B, 2>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let mut x = {
            let _stage = stage::module("patch_embed");
            self.embed(patches)
        };
        probe::capture("patch_embed", &x);
        x = self.pre_norm.forward(x);
        for (i, block) in self.blocks.iter().enumerate() {
            monitor.report(i, self.blocks.len())?;
            let _block = stage::scope(format_args!("blocks.{i}"));
            x = block.forward(x, self.config.heads());
        }
        Ok(x)
    }

    fn embed(&self, patches: Tensor<B, 2>) -> Tensor<B, 2> {
        let count = patches.dims()[0];
        let positions = self.position_embedding.val();
        let class = self.class_embedding.val().unsqueeze::<2>() + positions.clone().narrow(0, 0, 1);
        let patches = self
            .patch_embed
            .forward_residual(patches, positions.narrow(0, 1, count));
        Tensor::cat(vec![class, patches], 0)
    }
}

#[derive(Module, Debug)]
struct ClipBlock<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> ClipBlock<B> {
    fn init(
        config: &ClipConfig,
        activation: Activation,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let (width, mlp, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps,
        );
        let attention = scope.child("", "self_attn");
        let qkv = [("q_proj", width), ("k_proj", width), ("v_proj", width)];
        Ok(Self {
            attention_norm: scope.layer_norm("attention_norm", "layer_norm1", width, eps),
            qkv: attention.linear("qkv", &qkv, width, true)?,
            out: attention.linear("out", &[("out_proj", width)], width, true)?,
            mlp_norm: scope.layer_norm("mlp_norm", "layer_norm2", width, eps),
            up: scope.linear("up", &[("mlp.fc1", mlp)], width, true)?,
            down: scope.linear("down", &[("mlp.fc2", width)], mlp, true)?,
            activation,
        })
    }

    fn forward(&self, x: Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
        let x = {
            let _stage = stage::module("attention");
            let width = heads.heads * heads.head_dim;
            let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
            let [k, v] = [1, 2].map(|i| Columns {
                tensor: qkv.clone(),
                column: i * width,
            });
            let scale = (heads.head_dim as f32).powf(-0.5);
            let quantized = self.qkv.is_quantized();
            let attended = encoder_attention(qkv, k, v, heads, Mask::Full, scale, quantized);
            self.out.forward_residual(attended, x)
        };
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        self.up
            .feed_forward(normed, self.activation, &self.down, Some(x))
    }
}

/// Cuts an image into patches, in raster order.
///
/// # Shapes
/// - image: `[channels, image_size, image_size]`
/// - result: `[patches, channels * patch_size * patch_size]`, a patch's values ordered channel,
///   row, column as in the reference's convolution
pub fn cut_patches(image: &[f32], config: &ClipConfig) -> Vec<f32> {
    let (size, patch, side) = (config.image_size, config.patch_size, config.side());
    let mut patches = Vec::with_capacity(config.patches() * config.patch_width());
    for row in 0..side {
        for column in 0..side {
            for channel in 0..config.num_channels {
                for y in row * patch..(row + 1) * patch {
                    let start = (channel * size + y) * size + column * patch;
                    patches.extend_from_slice(&image[start..start + patch]);
                }
            }
        }
    }
    patches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClipConfig {
        ClipConfig {
            num_channels: 2,
            image_size: 5,
            patch_size: 2,
            num_hidden_layers: 5,
            ..ClipConfig::default()
        }
    }

    /// Computed by hand: the value of a pixel is `100 * channel + 10 * row + column`.
    #[test]
    fn patches_are_ordered_channel_row_column() {
        let image: Vec<f32> = (0..2 * 5 * 5)
            .map(|i| (i / 25 * 100 + i / 5 % 5 * 10 + i % 5) as f32)
            .collect();
        let patches = cut_patches(&image, &config());
        assert_eq!(patches.len(), 4 * 8);
        assert_eq!(patches[8..16], [2., 3., 12., 13., 102., 103., 112., 113.]);
        assert_eq!(patches[16..20], [20., 21., 30., 31.]);
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
