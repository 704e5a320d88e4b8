//! Qwen2.5-VL (Bai et al. 2025, <https://arxiv.org/abs/2502.13923>): Qwen2-VL with another vision
//! tower - attention inside windows in all blocks but a few, RMS norms, gated MLPs - and with
//! positions of videos that count time instead of frames. The reference is
//! `modeling_qwen2_5_vl.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2.5-VL-3B-Instruct -o qwen2.5-vl-3b.bpk
//! edge-lmm run qwen2.5-vl-3b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use edge_lmm_ops::{Activation, Heads, KernelBackend, Mask, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::encoders::block::{equal_heads, self_attention};
use crate::encoders::merger::Merger;
use crate::encoders::patch_grid::{
    PatchConfig, check_heads, check_rotary, check_token_width, patch_places, rotary_table,
};
use crate::error::ModelError;
use crate::families::qwen_vl_config::QwenVlConfig;
use crate::families::qwen_vl_input::QwenVlInput;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{Linear, RmsNorm};
use crate::layout::Layout;
use crate::media::{MediaInput, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::sizes::{self, Section};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::text::rotary::RotaryTable;
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_5_vl",
    title: "Qwen2.5-VL",
    parts: &[
        ("vision_config", &["qwen2_5_vl", "qwen2_5_vl_vision"]),
        ("text_config", &["qwen2_5_vl_text", "qwen2_5_vl", "qwen2"]),
    ],
};

/// Epsilon of the vision tower's norms; the reference has it in its code.
const VISION_NORM_EPS: f64 = 1e-6;

/// The vision tower's part of `config.json`; the defaults are those of the reference's
/// `Qwen2_5_VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: usize,
    hidden_size: usize,
    out_hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    hidden_act: String,
    #[serde(flatten)]
    patches: PatchConfig,
    window_size: usize,
    fullatt_block_indexes: Vec<usize>,
    tokens_per_second: u32,
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
    fn check(&self, text_width: usize) -> Result<(), ModelError> {
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
}

/// The model.
#[derive(Module, Debug)]
pub struct Qwen25Vl<B: KernelBackend> {
    vision: VisionTransformer<B>,
    projector: Merger<B, RmsNorm<B>>,
    text: Decoder<B>,
    #[module(skip)]
    input: QwenVlInput,
    #[module(skip)]
    tokens_per_second: u32,
}

impl<B: KernelBackend> Qwen25Vl<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = QwenVlConfig::<VisionConfig>::parse(&files.config)?;
        let vision = &config.vision;
        vision.check(config.text.hidden_size)?;
        let input = QwenVlInput::new(files, vision.patches.size(), config.tokens)?;
        let root = weights.root(Part::Vision);
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "visual"))?,
            projector: Merger::init(
                vision
                    .patches
                    .merger(vision.hidden_size, vision.out_hidden_size),
                &root
                    .part(Part::Projector)
                    .child("projector", "visual.merger"),
                |scope, name, source, width| scope.rms_norm(name, source, width, VISION_NORM_EPS),
            )?,
            text: Decoder::init(config.text, DecoderNames::TOP, &root)?,
            input,
            tokens_per_second: vision.tokens_per_second,
        })
    }
}

impl<B: KernelBackend> Model<B> for Qwen25Vl<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn resizes_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        self.input.image(image, options)
    }

    fn video(
        &self,
        frames: &[RgbImage],
        frames_per_second: f32,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let step = time_step(
            self.input.frames(),
            frames_per_second,
            self.tokens_per_second,
        )?;
        self.input.video(frames, step, options)
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        self.input.prompt(text, conversation, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let device = self.text.embed(&[0]).device();
        let windows = self.vision.windows(medium.grid);
        let features = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let shape = [medium.shape[0], medium.shape[1]];
            let pixels = Tensor::from_data(TensorData::new(medium.values.clone(), shape), &device);
            self.vision
                .forward(pixels, medium.grid, &windows, monitor)?
        };
        if probe::active() {
            let group = self.vision.merge * self.vision.merge;
            let raster = reorder(features.clone(), group, &windows.raster_order());
            probe::capture("vision_out", &raster);
        }
        let _stage = stage::top("projector");
        let out = self.projector.forward(features);
        let out = reorder(out, 1, &windows.raster_order());
        probe::capture("projector_out", &out);
        Ok(Encoded::new(medium, out))
    }
}

/// Returns the number of positions from one temporal patch of `frames` frames to the next. As in
/// the reference (4.57), the duration is cut to whole seconds before it is multiplied, so that
/// patches shorter than a second all get the same position.
fn time_step(frames: usize, frames_per_second: f32, per_second: u32) -> Result<u32, ModelError> {
    if !(frames_per_second > 0.0 && frames_per_second.is_finite()) {
        return Err(ModelError::Prompt(format!(
            "the video has {frames_per_second} frames per second, expected more than 0"
        )));
    }
    let seconds = (frames as f64 / f64::from(frames_per_second)) as u32;
    Ok(seconds.saturating_mul(per_second))
}

/// The windows that attention stays in. Inside the tower tokens stand window by window; a token
/// is a group of patches that the merger makes one of.
#[derive(Debug, PartialEq, Eq)]
struct Windows {
    /// Place in the raster of every token, in the tower's order.
    order: Vec<usize>,
    /// Cumulative numbers of patches in the windows, from 0 on.
    ends: Vec<usize>,
}

impl Windows {
    /// Cuts every temporal slice of `grid` patches into windows of `side` x `side` tokens of
    /// `merge` x `merge` patches; those at the right and lower edge may be smaller.
    fn new(grid: [usize; 3], merge: usize, side: usize) -> Self {
        let [t, h, w] = grid;
        let (h, w) = (h / merge, w / merge);
        let (mut order, mut ends) = (Vec::with_capacity(t * h * w), vec![0]);
        for slice in 0..t {
            for (top, left) in (0..h)
                .step_by(side)
                .flat_map(|y| (0..w).step_by(side).map(move |x| (y, x)))
            {
                for y in top..(top + side).min(h) {
                    let row = (slice * h + y) * w;
                    order.extend((left..(left + side).min(w)).map(|x| row + x));
                }
                ends.push(order.len() * merge * merge);
            }
        }
        Self { order, ends }
    }

    /// Returns the index in the tower's order of every token in raster order.
    fn raster_order(&self) -> Vec<usize> {
        let mut places = vec![0; self.order.len()];
        for (place, &token) in self.order.iter().enumerate() {
            places[token] = place;
        }
        places
    }
}

/// Puts tokens of `group` rows into another order: the `i`-th of the result is number `order[i]`.
fn reorder<B: KernelBackend>(x: Tensor<B, 2>, group: usize, order: &[usize]) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    let indices: Vec<i64> = order.iter().map(|&i| i as i64).collect();
    let indices = TensorData::new(indices, [order.len()]);
    let indices = Tensor::<B, 1, Int>::from_data(indices, &x.device());
    x.reshape([rows / group, group * width])
        .select(0, indices)
        .reshape([rows, width])
}

#[derive(Module, Debug)]
struct VisionTransformer<B: KernelBackend> {
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
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let patch_embed = scope.linear(
            "patch_embed",
            &[("patch_embed.proj", config.hidden_size)],
            config.patches.width(),
            false,
        )?;
        let blocks = scope
            .layers("blocks", config.depth, |i| format!("blocks.{i}"))?
            .iter()
            .map(|scope| VisionBlock::init(config, scope))
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

    fn windows(&self, grid: [usize; 3]) -> Windows {
        Windows::new(grid, self.merge, self.window)
    }

    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, hidden_size]`, window by window
    fn forward(
        &self,
        pixels: Tensor<B, 2>,
        grid: [usize; 3],
        windows: &Windows,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let group = self.merge * self.merge;
        let places = patch_places(grid, self.merge);
        let places: Vec<(usize, usize)> = (windows.order.iter())
            .flat_map(|&token| &places[token * group..(token + 1) * group])
            .copied()
            .collect();
        let table = rotary_table(&places, self.heads.head_dim, &pixels.device());
        // Windows never mix temporal slices, so full attention sees a slice in one piece.
        let slice = grid[1] * grid[2];
        let slices: Vec<usize> = (0..=grid[0]).map(|t| t * slice).collect();
        let mut x = {
            let _stage = stage::module("patch_embed");
            self.patch_embed.forward(pixels)
        };
        probe::capture("patch_embed", &x);
        x = reorder(x, group, &windows.order);
        for (i, block) in self.blocks.iter().enumerate() {
            let _block = stage::scope(format_args!("blocks.{i}"));
            let segments = match self.full_attention.contains(&i) {
                true => &slices,
                false => &windows.ends,
            };
            x = monitor.pass(i, self.blocks.len(), |monitor| {
                block.forward(x, &table, segments, self.heads, monitor)
            })?;
        }
        Ok(x)
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
}

impl<B: KernelBackend> VisionBlock<B> {
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let ffn = scope.dimension("ffn", config.intermediate_size)?;
        let normed = |norm| scope.normed(norm, width);
        let attended = scope.produced("qkv", 2 * width, width);
        let gated = scope.produced("gate_up", ffn.len(), &ffn);
        Ok(Self {
            attention_norm: scope.rms_norm("attention_norm", "norm1", width, VISION_NORM_EPS),
            qkv: scope.linear(
                "qkv",
                &[("attn.qkv", 3 * width)],
                normed("attention_norm"),
                true,
            )?,
            out: scope.linear("out", &[("attn.proj", width)], attended, true)?,
            mlp_norm: scope.rms_norm("mlp_norm", "norm2", width, VISION_NORM_EPS),
            gate_up: scope.linear(
                "gate_up",
                &[("mlp.gate_proj", &ffn), ("mlp.up_proj", &ffn)],
                normed("mlp_norm"),
                true,
            )?,
            down: scope.linear("down", &[("mlp.down_proj", width)], gated, true)?,
        })
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        table: &RotaryTable<B>,
        segments: &[usize],
        heads: Heads,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        monitor.report(0, 4)?;
        let x = {
            let _stage = stage::module("attention");
            let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
            let (mask, quantized) = (Mask::Segments(segments), self.qkv.is_quantized());
            monitor.report(1, 4)?;
            let attended = self_attention(qkv, heads, mask, Some(table), quantized);
            monitor.report(2, 4)?;
            self.out.forward_residual(attended, x)
        };
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

    /// Worked by hand: 3 x 5 tokens in windows of 2 x 2, so that the last row and the last column
    /// are cut off, and a second slice.
    #[test]
    fn windows_are_cut_off_at_the_edge() {
        let windows = Windows::new([2, 6, 10], 2, 2);
        let first = [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14];
        assert_eq!(windows.order[..15], first);
        assert_eq!(windows.order[15..], first.map(|token| token + 15));
        assert_eq!(windows.ends[..7], [0, 16, 32, 40, 48, 56, 60]);
        assert_eq!(windows.ends.last(), Some(&120));
        let back = windows.raster_order();
        assert!((0..30).all(|token| windows.order[back[token]] == token));
    }

    /// Two frames at 2 per second last one second; at 3 per second two thirds, which count as
    /// none; at 1.5 per second four thirds, which count as one.
    #[test]
    fn seconds_are_cut_to_whole_ones() {
        assert_eq!(time_step(2, 2.0, 25).unwrap(), 25);
        assert_eq!(time_step(2, 3.0, 25).unwrap(), 0);
        assert_eq!(time_step(2, 1.5, 25).unwrap(), 25);
        assert_eq!(time_step(2, 0.5, 25).unwrap(), 100);
        for impossible in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(time_step(2, impossible, 25).is_err());
        }
    }
}
