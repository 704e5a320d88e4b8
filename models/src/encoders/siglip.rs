//! The vision transformer of SigLIP (Zhai et al. 2023, <https://arxiv.org/abs/2303.15343>): square
//! images in square patches, learned positions, no class token, a norm after the last layer. The
//! reference is `modeling_siglip.py` of `transformers`.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{KernelBackend, stage};
use serde::Deserialize;

use crate::encoders::block::{Block, BlockConfig, BlockNames, equal_heads};
use crate::encoders::merged_patches::MergedPatches;
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

pub(super) const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
};

/// The tower's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SiglipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
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

impl Default for SiglipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            layer_norm_eps: 1e-6,
        }
    }
}

impl SiglipConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// If one is out of range, or sizes do not divide each other.
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
        ])?;
        section.heads(self.hidden_size, self.num_attention_heads)?;
        self.grid().check(section)?;
        if self.num_channels != 3 {
            return Err(ModelError::config(format!(
                "vision_config.num_channels is {}, expected 3",
                self.num_channels
            )));
        }
        Ok(())
    }

    /// Returns the patches of an image.
    pub(crate) fn grid(&self) -> SquarePatches {
        SquarePatches {
            channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
        }
    }
}

/// The tower.
#[derive(Module, Debug)]
pub struct SiglipTower<B: KernelBackend> {
    patch_embed: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
}

impl<B: KernelBackend> SiglipTower<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of `embeddings` and `encoder`.
    ///
    /// # Errors
    /// If the configuration is invalid or a weight is missing.
    pub fn init(config: &SiglipConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        config.check()?;
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
        Ok(Self {
            patch_embed: embeddings.linear(
                "patch_embed",
                &[("patch_embedding", width)],
                config.grid().width(),
                true,
            )?,
            positions: embeddings.matrix(
                "positions",
                "position_embedding.weight",
                config.grid().count(),
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

    /// Embeds patches and adds the positions of their places in raster order.
    ///
    /// # Shapes
    /// - patches: `[places.len(), channels * patch_size * patch_size]`
    /// - result: `[places.len(), hidden_size]`
    fn embed(&self, patches: Tensor<B, 2>, places: &[usize]) -> Tensor<B, 2> {
        let _stage = stage::module("patch_embed");
        let positions = self.positions.val();
        let positions = positions
            .clone()
            .select(0, indices(places, &positions.device()));
        self.patch_embed.forward_residual(patches, positions)
    }

    /// Encodes the patches of `units`, sorted, of several images, whose patches attend to those of the
    /// same image (stages `patch_embed` and `vision_out`).
    ///
    /// # Shapes
    /// - images: `[images, channels, image_size, image_size]`
    /// - result: `[units * rows, hidden_size]`, the patches of a unit one after the other
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub(crate) fn forward_merged(
        &self,
        squares: &MergedPatches,
        images: &[f32],
        units: &[usize],
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let device = self.positions.val().device();
        let shape = [units.len() * squares.rows(), squares.patches.width()];
        let patches = TensorData::new(squares.cut(images, units), shape);
        let patches = Tensor::from_data(patches, &device);
        let x = self.embed(patches, &squares.places(units));
        squares.capture("patch_embed", &x, units);
        let image = |unit| unit / squares.units();
        let units = Units::new(units.to_vec(), squares.rows());
        let output = self.forward(x, units, image, methods, monitor)?;
        squares.capture("vision_out", &output.x, &output.left.ids);
        Ok(output)
    }

    /// Runs the layers and the last norm over embedded patches of several images, whose patches attend
    /// to those of the same image; `image` returns the image of a unit.
    ///
    /// # Shapes
    /// - x: `[units * rows, hidden_size]`
    ///
    /// # Errors
    /// If `monitor` cancels.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        units: Units,
        image: impl Fn(usize) -> usize,
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
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
        Ok(output)
    }
}
