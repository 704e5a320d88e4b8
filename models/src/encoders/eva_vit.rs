//! The vision transformer of EVA-CLIP (Fang et al. 2022, <https://arxiv.org/abs/2211.07636>), used
//! by BLIP-2: square images in square patches, a class token, learned positions, pre-norm layers
//! with fused queries, keys and values, a norm at the end. The reference is `Blip2VisionModel` in
//! `modeling_blip_2.py` of `transformers`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{
    Activation, Columns, Heads, KernelBackend, Mask, encoder_attention, probe, stage,
};
use serde::Deserialize;

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, activation};
use crate::monitor::Monitor;
use crate::weights::Scope;

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
        if self.patch_size > self.image_size {
            return Err(ModelError::config(format!(
                "vision_config: a patch of {} pixels is larger than an image of {}",
                self.patch_size, self.image_size
            )));
        }
        Ok(())
    }

    /// Returns the number of patches per side of an image; pixels beyond the last whole patch are
    /// ignored.
    fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Returns the number of patches of an image and the number of values of a patch.
    pub fn patches_shape(&self) -> [usize; 2] {
        [self.patches(), self.patch_width()]
    }

    fn patches(&self) -> usize {
        self.side() * self.side()
    }

    fn patch_width(&self) -> usize {
        CHANNELS * self.patch_size * self.patch_size
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads,
        }
    }

    /// Cuts an image into patches, in raster order.
    ///
    /// # Shapes
    /// - image: `[3, image_size, image_size]`
    /// - result: `[patches, 3 * patch_size * patch_size]`, a patch's values ordered channel, row,
    ///   column as in the reference's convolution
    pub fn cut_patches(&self, image: &[f32]) -> Vec<f32> {
        let (size, patch, side) = (self.image_size, self.patch_size, self.side());
        let mut patches = Vec::with_capacity(self.patches() * self.patch_width());
        for (row, column) in (0..side).flat_map(|r| (0..side).map(move |c| (r, c))) {
            for channel in 0..CHANNELS {
                for y in row * patch..(row + 1) * patch {
                    let start = (channel * size + y) * size + column * patch;
                    patches.extend_from_slice(&image[start..start + patch]);
                }
            }
        }
        patches
    }
}

/// The vision tower.
#[derive(Module, Debug)]
pub struct EvaVit<B: KernelBackend> {
    patch_embed: Linear<B>,
    class_embedding: Param<Tensor<B, 2>>,
    position_embedding: Param<Tensor<B, 2>>,
    blocks: Vec<EvaBlock<B>>,
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
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = scope.child("", "embeddings");
        let patches = [("patch_embedding", width)];
        Ok(Self {
            patch_embed: embeddings.linear("patch_embed", &patches, config.patch_width(), true)?,
            class_embedding: embeddings.matrix("class_embedding", "class_embedding", 1, width),
            // Stored as [1, positions, width].
            position_embedding: embeddings.matrix(
                "position_embedding",
                "position_embedding",
                1,
                (config.patches() + 1) * width,
            ),
            blocks: (0..config.num_hidden_layers)
                .map(|i| {
                    let source = format!("encoder.layers.{i}");
                    EvaBlock::init(config, &scope.child(&format!("blocks.{i}"), &source))
                })
                .collect::<Result<_, _>>()?,
            norm: scope.layer_norm("norm", "post_layernorm", width, eps),
            config: config.clone(),
        })
    }

    /// Returns the normalized hidden states of an image, class token first.
    ///
    /// # Shapes
    /// - patches: `[patches, 3 * patch_size * patch_size]` from [`EvaVitConfig::cut_patches`]
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
        for (i, block) in self.blocks.iter().enumerate() {
            monitor.report(i, self.blocks.len())?;
            let _block = stage::scope(format_args!("blocks.{i}"));
            x = block.forward(x, self.config.heads());
        }
        Ok(self.norm.forward(x))
    }

    fn embed(&self, patches: Tensor<B, 2>) -> Tensor<B, 2> {
        let [count, _] = patches.dims();
        let shape = [1 + count, self.config.hidden_size];
        let positions = self.position_embedding.val().reshape(shape);
        let class = self.class_embedding.val() + positions.clone().narrow(0, 0, 1);
        let patches = self
            .patch_embed
            .forward_residual(patches, positions.narrow(0, 1, count));
        Tensor::cat(vec![class, patches], 0)
    }
}

#[derive(Module, Debug)]
struct EvaBlock<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> EvaBlock<B> {
    fn init(config: &EvaVitConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (width, mlp) = (config.hidden_size, config.intermediate_size);
        let eps = config.layer_norm_eps;
        let attention = scope.child("", "self_attn");
        Ok(Self {
            attention_norm: scope.layer_norm("attention_norm", "layer_norm1", width, eps),
            qkv: attention.linear("qkv", &[("qkv", 3 * width)], width, config.qkv_bias)?,
            out: attention.linear("out", &[("projection", width)], width, true)?,
            mlp_norm: scope.layer_norm("mlp_norm", "layer_norm2", width, eps),
            up: scope.linear("up", &[("mlp.fc1", mlp)], width, true)?,
            down: scope.linear("down", &[("mlp.fc2", width)], mlp, true)?,
            activation: activation("vision_config.hidden_act", &config.hidden_act)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand: the value of a pixel is `100 * channel + 10 * row + column`.
    #[test]
    fn patches_are_ordered_channel_row_column() {
        let config = EvaVitConfig {
            image_size: 5,
            patch_size: 2,
            ..EvaVitConfig::default()
        };
        let image: Vec<f32> = (0..3 * 5 * 5)
            .map(|i| (i / 25 * 100 + i / 5 % 5 * 10 + i % 5) as f32)
            .collect();
        let patches = config.cut_patches(&image);
        assert_eq!(patches.len(), 4 * 12);
        assert_eq!(
            patches[12..24],
            [
                2., 3., 12., 13., 102., 103., 112., 113., 202., 203., 212., 213.
            ]
        );
        assert_eq!(patches[24..28], [20., 21., 30., 31.]);
    }

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
