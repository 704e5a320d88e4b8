//! The vision transformer of SigLIP 2 NaFlex (Tschannen et al. 2025,
//! <https://arxiv.org/abs/2502.14786>): images of any shape in square patches, learned positions on a
//! square grid that is resized to that of the patches, a norm after the last layer. The reference is
//! `modeling_siglip2.py` of `transformers`.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;

use crate::encoders::block::{Block, BlockConfig, equal_heads};
use crate::encoders::patch_grid::patch_places;
use crate::encoders::siglip::BLOCK_NAMES;
use crate::encoders::tower::{Scopes, Tower, TowerOutput};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, activation};
use crate::monitor::Monitor;
use crate::reduce::Reductions;
use crate::reduce::merge::Units;
use crate::reduce::rows::indices;
use crate::sizes::{self, Section};
use crate::weights::Scope;

/// The tower's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Siglip2Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    num_patches: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for Siglip2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            num_patches: 256,
            patch_size: 16,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            layer_norm_eps: 1e-6,
        }
    }
}

impl Siglip2Config {
    /// Checks the sizes.
    ///
    /// # Errors
    /// If one is out of range, or sizes do not fit together.
    pub fn check(&self) -> Result<(), ModelError> {
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
            ("num_patches", self.num_patches, 1 << 16),
            ("patch_size", self.patch_size, 1 << 10),
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        if self.num_channels != 3 {
            return Err(ModelError::config(format!(
                "vision_config.num_channels is {}, expected 3",
                self.num_channels
            )));
        }
        let side = self.num_patches.isqrt();
        if side * side != self.num_patches {
            return Err(ModelError::config(format!(
                "vision_config.num_patches is {}, expected a square number",
                self.num_patches
            )));
        }
        Ok(())
    }

    /// Returns the number of values of a patch.
    pub fn patch_width(&self) -> usize {
        self.num_channels * self.patch_size * self.patch_size
    }
}

/// Patches of several images, of which each image has a grid of its own. Units are squares of `merge`
/// patches per side, counted through all images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grids {
    /// Rows and columns of patches of each image.
    pub images: Vec<[usize; 2]>,
    /// Patches per side of a unit, a divisor of all rows and columns.
    pub merge: usize,
}

impl Grids {
    /// Returns the number of units of each image.
    pub fn units(&self) -> impl Iterator<Item = usize> {
        let patches = self.merge * self.merge;
        self.images.iter().map(move |[h, w]| h * w / patches)
    }

    /// Returns image, row and column of every patch in storage order: image by image, unit by unit.
    fn places(&self) -> Vec<(usize, (usize, usize))> {
        let of_image = |(image, &[h, w]): (usize, &[usize; 2])| {
            let places = patch_places([1, h, w], self.merge).into_iter();
            places.map(move |place| (image, place))
        };
        self.images.iter().enumerate().flat_map(of_image).collect()
    }

    /// Captures patches in raster order of each image, if none is missing.
    fn capture<B: KernelBackend>(&self, name: &str, x: &Tensor<B, 2>) {
        let places = self.places();
        if !probe::active() || places.len() != x.dims()[0] {
            return;
        }
        let mut rows: Vec<usize> = (0..places.len()).collect();
        rows.sort_by_key(|&row| places[row]);
        probe::capture(name, &x.clone().select(0, indices(&rows, &x.device())));
    }
}

/// The tower.
#[derive(Module, Debug)]
pub(crate) struct Siglip2Tower<B: KernelBackend> {
    patch_embed: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
}

impl<B: KernelBackend> Siglip2Tower<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `embeddings` and `encoder`.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &Siglip2Config, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let block = BlockConfig {
            heads: equal_heads(config.num_attention_heads, width),
            ffn: config.intermediate_size,
            activation: activation("vision_config.hidden_act", &config.hidden_act)?,
            eps,
            qkv_bias: true,
            names: &BLOCK_NAMES,
        };
        let embeddings = scope.child("", "embeddings");
        let patches = [("patch_embedding", width)];
        Ok(Self {
            patch_embed: embeddings.linear("patch_embed", &patches, config.patch_width(), true)?,
            positions: embeddings.matrix(
                "positions",
                "position_embedding.weight",
                config.num_patches,
                width,
            ),
            blocks: scope
                .layers("blocks", config.num_hidden_layers, |i| {
                    format!("encoder.layers.{i}")
                })?
                .iter()
                .map(|scope| Block::init(block, scope))
                .collect::<Result<_, _>>()?,
            norm: scope.layer_norm("norm", "post_layernorm", width, eps),
        })
    }

    /// Returns the number of layers.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Encodes the patches of `units`, which attend to those of the same image (stage `vision`).
    ///
    /// # Shapes
    /// - patches: `[units * merge * merge, patch_width]`, result: `[units * merge * merge, hidden_size]`
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn forward(
        &self,
        patches: &[f32],
        (grids, units): (&Grids, Vec<usize>),
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let _stage = stage::top("vision");
        let _scope = stage::scope(format_args!("vision"));
        let device = self.patch_embed.device();
        let units = Units::new(units, grids.merge * grids.merge);
        let rows = units.row_indices(&units.ids);
        let all = grids.places();
        let x = {
            let _stage = stage::module("patch_embed");
            let shape = [rows.len(), patches.len() / rows.len().max(1)];
            let patches = Tensor::from_data(TensorData::new(patches.to_vec(), shape), &device);
            let x = self.patch_embed.forward(patches);
            grids.capture("patch_embed", &x);
            let side = self.positions.val().dims()[0].isqrt();
            let weights: Vec<f32> = (rows.iter())
                .flat_map(|&row| {
                    let (image, place) = all[row];
                    position_weights(side, grids.images[image], place)
                })
                .collect();
            let weights = TensorData::new(weights, [rows.len(), side * side]);
            let weights = Tensor::<B, 2>::from_data(weights, &device);
            x + weights.matmul(self.positions.val())
        };
        grids.capture("patch_embed_pos", &x);
        let per_unit = grids.merge * grids.merge;
        let image = |unit: usize| all[unit * per_unit].0;
        let tower = Tower {
            layers: &self.blocks,
            table: None,
            leading: 0,
            scopes: Scopes::Slices {
                slice: &|unit| image(unit),
                scope: &|_, unit| image(unit),
            },
            methods,
            inner: &[],
        };
        let mut output = tower.run(x, units, monitor)?;
        output.x = self.norm.forward(output.x);
        grids.capture("vision_out", &output.x);
        Ok(output)
    }
}

/// Returns the weights of the learned positions, on a grid of `side` x `side`, for the patch at `place`
/// of a grid: those of an antialiased bilinear resize without aligned corners.
fn position_weights(side: usize, [h, w]: [usize; 2], (row, column): (usize, usize)) -> Vec<f32> {
    let (rows, columns) = (axis_weights(side, h, row), axis_weights(side, w, column));
    let product = |y: &f64| {
        columns
            .iter()
            .map(move |x| (x * y) as f32)
            .collect::<Vec<_>>()
    };
    rows.iter().flat_map(product).collect()
}

fn axis_weights(side: usize, patches: usize, patch: usize) -> Vec<f64> {
    let scale = side as f64 / patches as f64;
    let (center, reach) = ((patch as f64 + 0.5) * scale - 0.5, scale.max(1.0));
    let weight = |i: usize| (1.0 - (i as f64 - center).abs() / reach).max(0.0);
    let sum: f64 = (0..side).map(weight).sum();
    (0..side).map(|i| weight(i) / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: three positions for two patches, each a triangle of half-width 1.5.
    #[test]
    fn positions_are_averaged_where_there_are_fewer_patches() {
        let weights = axis_weights(3, 2, 0);
        let sum = 5.0 / 6.0 + 0.5;
        for (found, expected) in weights.iter().zip([5.0 / 6.0 / sum, 0.5 / sum, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{weights:?}");
        }
        assert_eq!(axis_weights(2, 2, 1), [0.0, 1.0]);
        assert_eq!(axis_weights(2, 4, 1), [0.75, 0.25]);
    }

    #[test]
    fn units_are_counted_through_all_images() {
        let grids = Grids {
            images: vec![[2, 4], [2, 2]],
            merge: 2,
        };
        assert_eq!(grids.units().collect::<Vec<_>>(), [2, 1]);
        let places = grids.places();
        assert_eq!(places[4..6], [(0, (0, 2)), (0, (0, 3))]);
        assert_eq!(places[8], (1, (0, 0)));
    }
}
