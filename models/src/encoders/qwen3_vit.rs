//! The vision transformer of Qwen3-VL and Qwen3.5: interpolated learned positions, 2-D rotary embeddings,
//! attention within each temporal slice.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, Heads, KernelBackend, RowSums, probe, stage, sum_rows};
use serde::Deserialize;
use serde_json::Value;

use crate::encoders::block::{Block, BlockConfig, BlockNames, equal_heads};
use crate::encoders::merger::{Merger, MergerNames, MergerNorm};
use crate::encoders::patch_grid::{
    PatchConfig, UnitPatches, check_heads, check_rotary, check_token_width, rotary_table,
};
use crate::encoders::tower::{Scopes, Tower, TowerOutput};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::media::MediaInput;
use crate::monitor::Monitor;
use crate::reduce::EncoderSize;
use crate::sizes::{self, Section};
use crate::weights::Scope;

/// Epsilon of the vision tower's norms; the reference has it in its code.
const VISION_NORM_EPS: f64 = 1e-6;

const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: &["attn.qkv"],
    out: "attn.proj",
    mlp: ["mlp.linear_fc1", "mlp.linear_fc2"],
};

/// The vision tower's part of `config.json`; the defaults are those of the reference's
/// `Qwen3VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct VisionConfig {
    depth: usize,
    hidden_size: usize,
    out_hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    hidden_act: String,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    num_position_embeddings: usize,
    /// Blocks whose features the first layers of the language model take.
    pub deepstack_visual_indexes: Option<Vec<usize>>,
    rope_parameters: Value,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            depth: 27,
            hidden_size: 1152,
            out_hidden_size: 3584,
            intermediate_size: 4304,
            num_heads: 16,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            in_channels: 3,
            patch_size: 16,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            num_position_embeddings: 2304,
            deepstack_visual_indexes: None,
            rope_parameters: Value::Null,
        }
    }
}

impl VisionConfig {
    /// Checks the sizes for a language model of the given width and number of layers.
    pub fn check(&self, text_width: usize, text_layers: usize) -> Result<(), ModelError> {
        let section = Section("vision_config");
        section.sizes(&[
            ("depth", self.depth, sizes::LAYERS),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_heads", self.num_heads, sizes::HEADS),
            (
                "num_position_embeddings",
                self.num_position_embeddings,
                1 << 20,
            ),
        ])?;
        self.patches().check(section)?;
        check_heads(self.hidden_size, self.num_heads)?;
        if self.grid_side() * self.grid_side() != self.num_position_embeddings {
            return Err(ModelError::config(format!(
                "vision_config.num_position_embeddings is {}, expected a square number",
                self.num_position_embeddings
            )));
        }
        check_token_width("out_hidden_size", self.out_hidden_size, text_width)?;
        section.only("hidden_act", &self.hidden_act, "gelu_pytorch_tanh")?;
        self.check_deepstack(text_layers)?;
        check_rotary(&self.rope_parameters)
    }

    /// Checks the inner blocks whose features the first layers of the language model take.
    fn check_deepstack(&self, text_layers: usize) -> Result<(), ModelError> {
        let blocks = self.inner();
        let ascend = blocks.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend || blocks.last().is_some_and(|&last| last >= self.depth) {
            return Err(ModelError::config(format!(
                "vision_config.deepstack_visual_indexes is {blocks:?}, expected ascending numbers \
                 of {} blocks",
                self.depth
            )));
        }
        if blocks.len() >= text_layers {
            return Err(ModelError::config(format!(
                "vision_config.deepstack_visual_indexes has {} blocks for {text_layers} layers of \
                 the language model, expected fewer than layers",
                blocks.len()
            )));
        }
        Ok(())
    }

    /// Returns the blocks whose features deeper layers take, in order.
    pub fn inner(&self) -> &[usize] {
        self.deepstack_visual_indexes.as_deref().unwrap_or_default()
    }

    /// Returns the sizes of patches.
    pub fn patches(&self) -> PatchConfig {
        PatchConfig {
            in_channels: self.in_channels,
            patch_size: self.patch_size,
            spatial_merge_size: self.spatial_merge_size,
            temporal_patch_size: self.temporal_patch_size,
        }
    }

    /// Returns the side of the square grid of learned positions.
    fn grid_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }

    fn block(&self) -> BlockConfig<'static> {
        BlockConfig {
            heads: equal_heads(self.num_heads, self.hidden_size),
            ffn: self.intermediate_size,
            activation: Activation::GeluTanh,
            eps: VISION_NORM_EPS,
            qkv_bias: true,
            names: &BLOCK_NAMES,
        }
    }

    /// Declares a merger; `norm` tells which rows it normalizes.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn merger<B: KernelBackend>(
        &self,
        norm: MergerNorm,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Merger<B, LayerNorm<B>>, ModelError> {
        Merger::init(
            self.patches()
                .merger(self.hidden_size, self.out_hidden_size),
            (MergerNames::QWEN3_VL, norm),
            scope,
            |scope, name, source, width| scope.layer_norm(name, source, width, VISION_NORM_EPS),
        )
    }
}

/// The tower.
#[derive(Module, Debug)]
pub(crate) struct VisionTransformer<B: KernelBackend> {
    patch_embed: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    #[module(skip)]
    inner: Vec<usize>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    merge: usize,
}

impl<B: KernelBackend> VisionTransformer<B> {
    /// Declares the weights; `scope` is the checkpoint prefix of the tower.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let patch_embed = scope.linear(
            "patch_embed",
            &[("patch_embed.proj", width)],
            config.patches().width(),
            true,
        )?;
        let positions = scope.matrix(
            "positions",
            "pos_embed.weight",
            config.num_position_embeddings,
            width,
        );
        let block = config.block();
        let blocks = scope
            .layers("blocks", config.depth, |i| format!("blocks.{i}"))?
            .iter()
            .map(|scope| Block::init(block, scope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_embed,
            positions,
            blocks,
            inner: config.inner().to_vec(),
            heads: block.heads,
            merge: config.spatial_merge_size,
        })
    }

    /// Returns the size of the work on a medium.
    pub fn size(&self, medium: &MediaInput) -> EncoderSize {
        EncoderSize {
            layers: self.blocks.len(),
            ..UnitPatches::new(medium, self.merge).size()
        }
    }

    /// Encodes patches. The inner blocks' features come with the output.
    ///
    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, hidden_size]`
    pub fn forward(
        &self,
        pixels: Tensor<B, 2>,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let patches = UnitPatches::new(medium, self.merge);
        let units = patches.entering();
        let places = patches.places(&units);
        let table = rotary_table(&places, self.heads.head_dim, &pixels.device());
        let x = {
            let _stage = stage::module("patch_embed");
            let [_, rows, columns] = medium.grid;
            self.embed(pixels, &places, [rows, columns])
        };
        let tower = Tower {
            layers: &self.blocks,
            table: Some(table),
            leading: 0,
            // Every temporal slice attends to itself alone.
            scopes: Scopes::Slices {
                slice: &|unit| patches.slice(unit),
                scope: &|_, unit| patches.slice(unit),
            },
            methods: &medium.reduction.methods,
            inner: &self.inner,
        };
        tower.run(x, units, monitor)
    }

    /// Embeds patches at `places` (row, column) of a grid of `size` patches.
    fn embed(
        &self,
        pixels: Tensor<B, 2>,
        places: &[(usize, usize)],
        size: [usize; 2],
    ) -> Tensor<B, 2> {
        let table = self.positions.val();
        let side = table.dims()[0].isqrt();
        let positions = sum_rows(table, &interpolation(places, size, side));
        probe::capture("pos_embed", &positions);
        let x = self.patch_embed.forward(pixels);
        probe::capture("patch_embed", &x);
        let x = x + positions;
        probe::capture("patch_embed_pos", &x);
        x
    }
}

/// Returns the bilinear interpolation of a grid of `side` x `side` rows at `places` (row, column) of a
/// grid of `size` patches. The corners of both grids meet.
fn interpolation(places: &[(usize, usize)], size: [usize; 2], side: usize) -> RowSums {
    let [rows, columns] = size.map(|count| axis(count, side));
    let mut sums = RowSums::default();
    for &(row, column) in places {
        let terms = rows[row].iter().flat_map(|(y, wy)| {
            let terms = columns[column].iter();
            terms.map(move |(x, wx)| (y * side + x, wy * wx))
        });
        sums.push(terms);
    }
    sums
}

/// Returns the two neighbors, with their weights, of each of `count` points that are spread evenly over
/// `side` rows, the first on the first one and the last on the last one.
fn axis(count: usize, side: usize) -> Vec<[(usize, f32); 2]> {
    let step = (side - 1) as f32 / (count.max(2) - 1) as f32;
    let point = |i: usize| {
        // As `torch.linspace`, which counts the second half from the end.
        let place = match i < count.div_ceil(2) {
            true => step * i as f32,
            false => (side - 1) as f32 - step * (count - 1 - i) as f32,
        };
        let first = place as usize;
        let share = place - first as f32;
        [(first, 1.0 - share), ((first + 1).min(side - 1), share)]
    };
    (0..count).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Worked by hand: five patches over a grid of three rows fall on rows and their middles; a
    /// single one stands at the first row.
    #[test]
    fn corners_meet() {
        let places: Vec<f32> = (axis(5, 3).iter())
            .map(|[(first, _), (_, share)]| *first as f32 + share)
            .collect();
        assert_eq!(places, [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(axis(1, 3), [[(0, 1.0), (1, 0.0)]]);
        assert_eq!(axis(2, 1), [[(0, 1.0), (0, 0.0)]; 2]);
        let sums = interpolation(&[(1, 2)], [3, 3], 2);
        let terms: Vec<_> = sums.terms().collect();
        assert_eq!(terms, [(0, 1, 0.5), (0, 1, 0.0), (0, 3, 0.5), (0, 3, 0.0)]);
    }

    #[test]
    fn lying_sizes_are_errors() {
        let check = |change: Value| {
            let mut config = json!({"out_hidden_size": 64, "deepstack_visual_indexes": [1, 2],
                "depth": 4, "hidden_size": 64, "num_heads": 4});
            for (key, value) in change.as_object().unwrap() {
                config[key.as_str()] = value.clone();
            }
            let config: VisionConfig = serde_json::from_value(config).unwrap();
            config.check(64, 3).map_err(|error| error.to_string())
        };
        assert_eq!(check(json!({})), Ok(()));
        for (change, word) in [
            (
                json!({"deepstack_visual_indexes": [1, 4]}),
                "deepstack_visual_indexes",
            ),
            (json!({"deepstack_visual_indexes": [2, 1]}), "ascending"),
            (
                json!({"deepstack_visual_indexes": [0, 1, 2]}),
                "fewer than layers",
            ),
            (json!({"num_position_embeddings": 2305}), "square"),
            (
                json!({"num_position_embeddings": 0}),
                "num_position_embeddings",
            ),
            (json!({"num_heads": 7}), "heads"),
            (json!({"patch_size": 0}), "patch_size"),
            (json!({"hidden_act": "relu"}), "hidden_act"),
            (json!({"out_hidden_size": 32}), "out_hidden_size"),
        ] {
            let error = check(change).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
