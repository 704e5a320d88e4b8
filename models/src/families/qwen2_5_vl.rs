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
use edge_lmm_ops::{KernelBackend, probe, stage};

use crate::encoders::merger::Merger;
use crate::encoders::qwen2_5_vit::{FUSED_QKV, VisionConfig, VisionTransformer};
use crate::error::ModelError;
use crate::families::qwen_vl_config::QwenVlConfig;
use crate::families::qwen_vl_input::{QwenVlInput, Variant, VideoTime};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::RmsNorm;
use crate::layout::Layout;
use crate::media::{FrameTimes, MediaInput, MediaOptions, VideoFrames, VideoPieces};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::reduce::EncoderSize;
use crate::text::config::TextKind;
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_5_vl",
    title: "Qwen2.5-VL",
    parts: &[
        ("vision_config", &["qwen2_5_vl", "qwen2_5_vl_vision"]),
        ("text_config", &["qwen2_5_vl_text", "qwen2_5_vl", "qwen2"]),
    ],
};

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
            vision: VisionTransformer::init(vision, FUSED_QKV, &root.child("vision", "visual"))?,
            projector: vision.merger(
                &root
                    .part(Part::Projector)
                    .child("projector", "visual.merger"),
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
        self.vision.size(medium)
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
        let tower = self.vision.encode(medium, monitor)?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
