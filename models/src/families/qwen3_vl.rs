//! Qwen3-VL (Bai et al. 2025, <https://arxiv.org/abs/2511.21631>): a vision transformer at the image's
//! own resolution with interpolated learned positions and 2-D rotary embeddings, mergers that make one
//! token of 2x2 patches of its last block and of some inner ones (DeepStack,
//! <https://arxiv.org/abs/2406.04334>), and a Qwen3 decoder whose first layers take the features of the
//! inner blocks. Rotary frequencies of time, height and width take turns; the time of a video is text.
//! The reference is `modeling_qwen3_vl.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen3-VL-2B-Instruct -o qwen3-vl-2b.bpk
//! edge-lmm run qwen3-vl-2b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::config_file::{flattened, parse_config};
use crate::encoders::merger::{Merger, MergerNorm};
use crate::encoders::qwen3_vit::{VisionConfig, VisionTransformer};
use crate::error::ModelError;
use crate::families::qwen_vl_input::{MediaTokens, QwenVlInput, Stamps, Variant, VideoTime};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::LayerNorm;
use crate::layout::Layout;
use crate::media::{FrameTimes, MediaInput, MediaOptions, VideoFrames, VideoPieces};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::reduce::EncoderSize;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderConfig, DecoderNames};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen3_vl",
    title: "Qwen3-VL",
    parts: &[
        ("vision_config", &["qwen3_vl", "qwen3_vl_vision"]),
        ("text_config", &["qwen3_vl_text"]),
    ],
};

/// First version of `transformers` that keeps the markers around a whole video.
const OUTER_MARKERS_SINCE: [u32; 2] = [5, 12];

const TEXT_NAMES: DecoderNames = DecoderNames {
    model: "model.language_model",
    head: "lm_head",
};

/// The model.
pub type Qwen3Vl<B> = VisionLanguage<B, Decoder<B>>;

/// A language model that follows the vision tower.
pub trait TowerText<B: KernelBackend>: Module<B> + LanguageModel<B> + Sync {
    /// The configuration of the language model.
    type Config;
    /// The blocks of the tower with features for deeper layers, if `config.json` does not say them.
    const INNER_BLOCKS: &'static [usize];
    /// The tokens of images and videos, if `config.json` does not say them.
    const MEDIA_TOKENS: [u32; 2];
    /// The properties of the input that are not those of Qwen3-VL.
    const VARIANT: Variant;

    /// Reads the configuration from `config.json`, which has the members of its `text_config` at the top
    /// level. Returns it with the width and the number of layers.
    ///
    /// # Errors
    /// If the model is not supported.
    fn config(config: &Value) -> Result<(Self::Config, [usize; 2]), ModelError>;

    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    fn declare(config: Self::Config, root: &Scope<'_, '_, B>) -> Result<Self, ModelError>;
}

impl<B: KernelBackend> TowerText<B> for Decoder<B> {
    type Config = DecoderConfig;
    const INNER_BLOCKS: &'static [usize] = &[8, 16, 24];
    const MEDIA_TOKENS: [u32; 2] = [151_655, 151_656];
    const VARIANT: Variant = Variant::QWEN3_VL;

    fn config(config: &Value) -> Result<(DecoderConfig, [usize; 2]), ModelError> {
        let config = decoder_config(TextKind::Qwen3Vl, config)?;
        let sizes = [config.hidden_size, config.layers];
        Ok((config, sizes))
    }

    fn declare(config: DecoderConfig, root: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        Self::init(config, TEXT_NAMES, root)
    }
}

/// The members of `config.json` outside of the language model.
#[derive(Deserialize)]
struct Sections {
    #[serde(default)]
    vision_config: VisionConfig,
    image_token_id: Option<u32>,
    video_token_id: Option<u32>,
}

/// The vision tower with a language model.
#[derive(Module, Debug)]
pub struct VisionLanguage<B: KernelBackend, T: Module<B>> {
    vision: VisionTransformer<B>,
    projector: Merger<B, LayerNorm<B>>,
    deepstack: Vec<Merger<B, LayerNorm<B>>>,
    text: T,
    #[module(skip)]
    input: QwenVlInput,
    #[module(skip)]
    outer_markers: bool,
}

impl<B: KernelBackend, T: TowerText<B>> VisionLanguage<B, T> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let flat = flattened(&files.config);
        let (text, [width, layers]) = T::config(&flat)?;
        let sections: Sections = parse_config(&flat)?;
        let mut vision = sections.vision_config;
        vision
            .deepstack_visual_indexes
            .get_or_insert(T::INNER_BLOCKS.to_vec());
        vision.check(width, layers)?;
        let [image, video] = T::MEDIA_TOKENS;
        let tokens = MediaTokens::new(
            sections.image_token_id.unwrap_or(image),
            sections.video_token_id.unwrap_or(video),
        );
        let input = QwenVlInput::new(files, vision.patches().size(), tokens, T::VARIANT)?;
        let root = weights.root(Part::Vision);
        let mergers = root.part(Part::Projector).child("", "model.visual");
        let deepstack = (0..vision.inner().len()).map(|i| {
            let (name, source) = (
                format!("deepstack.{i}"),
                format!("deepstack_merger_list.{i}"),
            );
            vision.merger(MergerNorm::Tokens, &mergers.child(&name, &source))
        });
        Ok(Self {
            vision: VisionTransformer::init(&vision, &root.child("vision", "model.visual"))?,
            projector: vision.merger(MergerNorm::Patches, &mergers.child("projector", "merger"))?,
            deepstack: deepstack.collect::<Result<_, _>>()?,
            text: T::declare(text, &root)?,
            input,
            outer_markers: keeps_outer_markers(&files.config),
        })
    }

    fn stamps(&self, frames: usize, times: &FrameTimes) -> Result<VideoTime, ModelError> {
        times.check()?;
        Ok(VideoTime::Stamps(Stamps {
            frames,
            times: times.clone(),
            outer_markers: self.outer_markers,
        }))
    }
}

/// Returns `true` if the version of `transformers` that saved a checkpoint keeps the markers around a
/// whole video. Published checkpoints were saved by versions that do not.
fn keeps_outer_markers(config: &Value) -> bool {
    let version = config.get("transformers_version").and_then(Value::as_str);
    let mut numbers = version.unwrap_or_default().split('.');
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    [number(), number()] >= OUTER_MARKERS_SINCE.map(Some)
}

impl<B: KernelBackend, T: TowerText<B>> Model<B> for VisionLanguage<B, T> {
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
        let stamps = self.stamps(frames.len(), times)?;
        self.input.video(frames, &stamps, options)
    }

    fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        let stamps = self.stamps(frames.count(), times)?;
        self.input.video_pieces(frames, &stamps, options)
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
        let deep = self.deepstack.iter().zip(tower.inner).enumerate();
        let deep = deep.map(|(i, (merger, x))| {
            let features = merger.forward(x);
            probe::capture(&format!("deepstack_{i}"), &features);
            // The reference adds them after layer `i`.
            (i + 1, features)
        });
        Ok(Encoded {
            deep: deep.collect(),
            ..Encoded::of_units(medium, out, tower.left)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn newer_versions_keep_the_outer_markers() {
        let keeps = |version| keeps_outer_markers(&json!({"transformers_version": version}));
        assert!(keeps("5.12.0") && keeps("5.24.0") && keeps("6.0"));
        assert!(!keeps("4.57.6") && !keeps("5.11.3") && !keeps("4.57.0.dev0"));
        assert!(!keeps_outer_markers(&json!({})));
    }
}
