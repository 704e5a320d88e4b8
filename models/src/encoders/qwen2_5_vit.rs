//! The vision transformer of Qwen2.5-VL and Qwen2.5-Omni: attention inside windows in all blocks but a
//! few, 2-D rotary embeddings, RMS norms, gated MLPs.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Heads, KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::encoders::block::{attend, equal_heads};
use crate::encoders::merger::{Merger, MergerNames, MergerNorm};
use crate::encoders::patch_grid::{
    PatchConfig, UnitPatches, check_heads, check_rotary, check_token_width, rotary_table,
};
use crate::encoders::tower::{Attended, AttentionInput, Scopes, Tower, TowerLayer, TowerOutput};
use crate::error::ModelError;
use crate::layers::{Linear, RmsNorm};
use crate::media::MediaInput;
use crate::monitor::Monitor;
use crate::reduce::EncoderSize;
use crate::reduce::merge::Units;
use crate::reduce::rows::indices;
use crate::sizes::{self, Section};
use crate::weights::Scope;

/// The projection of queries, keys and values of Qwen2.5-VL.
pub(crate) const FUSED_QKV: &[&str] = &["attn.qkv"];

/// The projections of queries, keys and values of Qwen2.5-Omni.
pub(crate) const SPLIT_QKV: &[&str] = &["attn.q", "attn.k", "attn.v"];

/// Epsilon of the vision tower's norms; the reference has it in its code.
const VISION_NORM_EPS: f64 = 1e-6;

/// The vision tower's part of `config.json`; the defaults are those of the reference's
/// `Qwen2_5_VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct VisionConfig {
    depth: usize,
    hidden_size: usize,
    out_hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    hidden_act: String,
    #[serde(flatten)]
    pub patches: PatchConfig,
    window_size: usize,
    fullatt_block_indexes: Vec<usize>,
    pub tokens_per_second: u32,
    rope_parameters: Value,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            hidden_size: 3584,
            out_hidden_size: 3584,
            intermediate_size: 3420,
            num_heads: 16,
            hidden_act: "silu".to_owned(),
            patches: PatchConfig::default(),
            window_size: 112,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            tokens_per_second: 4,
            rope_parameters: Value::Null,
        }
    }
}

impl VisionConfig {
    /// Checks the sizes for a language model of the given width.
    ///
    /// # Errors
    /// If one is out of range, or sizes do not fit together.
    pub fn check(&self, text_width: usize) -> Result<(), ModelError> {
        let section = Section("vision_config");
        section.sizes(&[
            ("depth", self.depth, sizes::LAYERS),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_heads", self.num_heads, sizes::HEADS),
            ("window_size", self.window_size, 1 << 20),
        ])?;
        self.patches.check(section)?;
        check_heads(self.hidden_size, self.num_heads)?;
        if self.window() == 0 {
            return Err(ModelError::config(format!(
                "vision_config.window_size is {} pixels, expected at least one token of {}",
                self.window_size,
                self.patches.token_side()
            )));
        }
        check_token_width("out_hidden_size", self.out_hidden_size, text_width)?;
        section.only("hidden_act", &self.hidden_act, "silu")?;
        check_rotary(&self.rope_parameters)
    }

    /// Returns the side of a window in tokens.
    fn window(&self) -> usize {
        self.window_size / self.patches.token_side()
    }

    fn heads(&self) -> Heads {
        equal_heads(self.num_heads, self.hidden_size)
    }

    /// Declares the weights of the merger.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn merger<B: KernelBackend>(
        &self,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Merger<B, RmsNorm<B>>, ModelError> {
        Merger::init(
            self.patches.merger(self.hidden_size, self.out_hidden_size),
            (MergerNames::QWEN2_VL, MergerNorm::Patches),
            scope,
            |scope, name, source, width| scope.rms_norm(name, source, width, VISION_NORM_EPS),
        )
    }
}

/// Returns the number of the window of every unit. Windows of `side` x `side` units are cut from every
/// slice of `grid` units; those at the right and lower edge may be smaller.
fn windows([times, height, width]: [usize; 3], side: usize) -> Vec<usize> {
    let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
    let window = |unit: usize| {
        let (slice, place) = (unit / (height * width), unit % (height * width));
        let (row, column) = (place / width / side, place % width / side);
        (slice * rows + row) * columns + column
    };
    (0..times * height * width).map(window).collect()
}

/// The tower.
#[derive(Module, Debug)]
pub(crate) struct VisionTransformer<B: KernelBackend> {
    patch_embed: Linear<B>,
    blocks: Vec<VisionBlock<B>>,
    #[module(skip)]
    full_attention: Vec<usize>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    merge: usize,
    #[module(skip)]
    window: usize,
}

impl<B: KernelBackend> VisionTransformer<B> {
    /// Declares the weights; `qkv` are the names of the projections of queries, keys and values.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(
        config: &VisionConfig,
        qkv: &[&str],
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let patch_embed = scope.linear(
            "patch_embed",
            &[("patch_embed.proj", config.hidden_size)],
            config.patches.width(),
            false,
        )?;
        let blocks = scope
            .layers("blocks", config.depth, |i| format!("blocks.{i}"))?
            .iter()
            .map(|scope| VisionBlock::init(config, qkv, scope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_embed,
            blocks,
            full_attention: config.fullatt_block_indexes.clone(),
            heads: config.heads(),
            merge: config.patches.spatial_merge_size,
            window: config.window(),
        })
    }

    /// Returns the size of the work on a medium.
    pub fn size(&self, medium: &MediaInput) -> EncoderSize {
        EncoderSize {
            layers: self.blocks.len(),
            ..UnitPatches::new(medium, self.merge).size()
        }
    }

    /// Encodes a medium (stage `vision`).
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let _stage = stage::top("vision");
        let _scope = stage::scope(format_args!("vision"));
        let pixels = TensorData::new(medium.values.clone(), [medium.shape[0], medium.shape[1]]);
        let pixels = Tensor::from_data(pixels, &self.patch_embed.device());
        let tower = self.forward(pixels, medium, monitor)?;
        probe::capture("vision_out", &tower.x);
        Ok(tower)
    }

    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, hidden_size]`
    fn forward(
        &self,
        pixels: Tensor<B, 2>,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let patches = UnitPatches::new(medium, self.merge);
        let window = windows(patches.grid(), self.window);
        let raster = patches.entering();
        // Inside the tower, units stand window by window. Windows never mix slices, so a slice is in
        // one piece as well.
        let mut order: Vec<usize> = (0..raster.ids.len()).collect();
        order.sort_by_key(|&place| window[raster.ids[place]]);
        let ids = order.iter().map(|&place| raster.ids[place]).collect();
        let units = Units::new(ids, raster.rows);
        let device = pixels.device();
        let table = rotary_table(&patches.places(&units), self.heads.head_dim, &device);
        let x = {
            let _stage = stage::module("patch_embed");
            self.patch_embed.forward(pixels)
        };
        probe::capture("patch_embed", &x);
        let tower = Tower {
            layers: &self.blocks,
            table: Some(table),
            leading: 0,
            scopes: Scopes::Slices {
                slice: &|unit| patches.slice(unit),
                scope: &|block, unit| match self.full_attention.contains(&block) {
                    true => patches.slice(unit),
                    false => window[unit],
                },
            },
            methods: &medium.reduction.methods,
            inner: &[],
        };
        let x = x.select(0, indices(&raster.row_indices(&order), &device));
        tower.run(x, units, monitor)
    }
}

#[derive(Module, Debug)]
struct VisionBlock<B: KernelBackend> {
    attention_norm: RmsNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: RmsNorm<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    heads: Heads,
}

impl<B: KernelBackend> VisionBlock<B> {
    fn init(
        config: &VisionConfig,
        qkv: &[&str],
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let normed = |norm| scope.normed(norm, width);
        let attended = scope.produced("qkv", 2 * width, width);
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        let rows = 3 * width / qkv.len();
        let qkv: Vec<(&str, usize)> = qkv.iter().map(|name| (*name, rows)).collect();
        Ok(Self {
            attention_norm: scope.rms_norm("attention_norm", "norm1", width, VISION_NORM_EPS),
            qkv: scope.linear("qkv", &qkv, normed("attention_norm"), true)?,
            out: scope.linear("out", &[("attn.proj", width)], attended, true)?,
            mlp_norm: scope.rms_norm("mlp_norm", "norm2", width, VISION_NORM_EPS),
            gate_up: scope.linear(
                "gate_up",
                &[("mlp.gate_proj", &ffn), ("mlp.up_proj", &ffn)],
                normed("mlp_norm"),
                true,
            )?,
            down: scope.linear("down", &[("mlp.down_proj", width)], gated, true)?,
            heads: config.heads(),
        })
    }
}

impl<B: KernelBackend> TowerLayer<B> for VisionBlock<B> {
    fn attend(
        &self,
        x: Tensor<B, 2>,
        input: AttentionInput<'_, B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Attended<B>, ModelError> {
        let norm = |x| self.attention_norm.forward(x);
        attend(x, norm, [&self.qkv, &self.out], self.heads, input, monitor)
    }

    fn mlp(&self, x: Tensor<B, 2>, monitor: &mut Monitor<'_>) -> Result<Tensor<B, 2>, ModelError> {
        monitor.report(3, 4)?;
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        Ok(self
            .gate_up
            .gated_feed_forward(normed, Activation::Silu, &self.down, Some(x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: 3 x 5 units in windows of 2 x 2, so that the last row and the last column
    /// are cut off, and a second slice.
    #[test]
    fn windows_are_cut_off_at_the_edge() {
        let windows = windows([2, 3, 5], 2);
        let first = [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5];
        assert_eq!(windows[..15], first);
        assert_eq!(windows[15..], first.map(|window| window + 6));
    }
}
