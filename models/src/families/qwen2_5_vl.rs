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
use crate::families::qwen_vl_config::QwenVlConfig;
use crate::families::qwen_vl_input::{QwenVlInput, Variant, VideoTime};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{Linear, RmsNorm};
use crate::layout::Layout;
use crate::media::{FrameTimes, MediaInput, MediaOptions, VideoFrames, VideoPieces};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::reduce::EncoderSize;
use crate::reduce::merge::Units;
use crate::reduce::rows::indices;
use crate::sizes::{self, Section};
use crate::text::config::TextKind;
use crate::text::decoder::{Decoder, DecoderNames};
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
        let config = QwenVlConfig::<VisionConfig>::parse(TextKind::QwenVl, &files.config)?;
        let vision = &config.vision;
        vision.check(config.text.hidden_size)?;
        let (size, variant) = (vision.patches.size(), Variant::QWEN2_VL);
        let input = QwenVlInput::new(files, size, config.tokens, variant)?;
        let root = weights.root(Part::Vision);
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "visual"))?,
            projector: Merger::init(
                vision
                    .patches
                    .merger(vision.hidden_size, vision.out_hidden_size),
                (MergerNames::QWEN2_VL, MergerNorm::Patches),
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

    /// Returns the number of positions from one temporal patch to the next.
    fn time_step(&self, times: &FrameTimes) -> Result<u32, ModelError> {
        time_step(self.input.frames(), times, self.tokens_per_second)
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
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let step = self.time_step(times)?;
        self.input.video(frames, &VideoTime::Steps(step), options)
    }

    fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        let step = self.time_step(times)?;
        self.input
            .video_pieces(frames, &VideoTime::Steps(step), options)
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let size = UnitPatches::new(medium, self.vision.merge).size();
        EncoderSize {
            layers: self.vision.blocks.len(),
            ..size
        }
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
        let tower = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let shape = [medium.shape[0], medium.shape[1]];
            let pixels = Tensor::from_data(TensorData::new(medium.values.clone(), shape), &device);
            self.vision.forward(pixels, medium, monitor)?
        };
        probe::capture("vision_out", &tower.x);
        let _stage = stage::top("projector");
        let out = self.projector.forward(tower.x);
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }
}

/// Returns the number of positions from one temporal patch of `frames` frames to the next. As in
/// the reference (4.57), the duration is cut to whole seconds before it is multiplied, so that
/// patches shorter than a second all get the same position.
fn time_step(frames: usize, times: &FrameTimes, per_second: u32) -> Result<u32, ModelError> {
    times.check()?;
    let seconds = (frames as f64 / f64::from(times.frames_per_second)) as u32;
    Ok(seconds.saturating_mul(per_second))
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

    /// Two frames at 2 per second last one second; at 3 per second two thirds, which count as
    /// none; at 1.5 per second four thirds, which count as one.
    #[test]
    fn seconds_are_cut_to_whole_ones() {
        let step = |rate: f32| time_step(2, &rate.into(), 25).ok();
        let rates = [2.0, 3.0, 1.5, 0.5];
        assert_eq!(rates.map(step), [25, 0, 25, 100].map(Some));
        for impossible in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(step(impossible), None);
        }
    }
}
