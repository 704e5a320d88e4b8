//! Images, videos and prompts of Qwen2-VL and Qwen2.5-VL.

use serde::Deserialize;

use crate::error::ModelError;
use crate::family::ModelFiles;
use crate::layout::{Layout, Run};
use crate::media::{
    InputReduction, MediaInput, MediaKind, MediaOptions, PieceSize, VideoFrames, VideoPieces,
};
use crate::preprocess::RgbImage;
use crate::preprocess::qwen2_vl::{Patches, PreprocessConfig};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::duplicates::enter;

/// The template of the published checkpoints, for those that come without one.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Patches of a piece of a video, if a slice in time has no more. The weights are read once for
/// each piece.
const PIECE_PATCHES: usize = 512;

/// Size of the tower's patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PatchSize {
    /// Side in pixels.
    pub side: usize,
    /// Frames.
    pub frames: usize,
    /// Patches on each side of a token.
    pub merge: usize,
}

/// The tokens that stand for media; the defaults are those of the reference's configuration
/// classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct MediaTokens {
    image_token_id: u32,
    video_token_id: u32,
}

impl Default for MediaTokens {
    fn default() -> Self {
        Self {
            image_token_id: 151_655,
            video_token_id: 151_656,
        }
    }
}

/// Prepares media and puts prompts together.
#[derive(Debug, Clone)]
pub(crate) struct QwenVlInput {
    image: PreprocessConfig,
    video: PreprocessConfig,
    tokens: MediaTokens,
}

impl QwenVlInput {
    /// Reads the configurations of the image and the video processor.
    ///
    /// # Errors
    /// If one cannot be used or cuts other patches than `patch`.
    pub fn new(
        files: &ModelFiles,
        patch: PatchSize,
        tokens: MediaTokens,
    ) -> Result<Self, ModelError> {
        let image = files.preprocessor.as_ref();
        let video = files.video_preprocessor.as_ref().or(image);
        let input = Self {
            image: PreprocessConfig::for_images(image)?,
            video: PreprocessConfig::for_videos(video)?,
            tokens,
        };
        for (kind, config) in [("image", &input.image), ("video", &input.video)] {
            let found = PatchSize {
                side: config.patch_size,
                frames: config.temporal_patch_size,
                merge: config.merge_size,
            };
            if found != patch {
                return Err(ModelError::config(format!(
                    "the {kind} processor cuts patches of {} pixels, {} frames, merged by {}; \
                     the model was made for {}, {}, {}",
                    found.side, found.frames, found.merge, patch.side, patch.frames, patch.merge
                )));
            }
        }
        Ok(input)
    }

    /// Frames of a patch.
    pub fn frames(&self) -> usize {
        self.video.temporal_patch_size
    }

    /// Preprocesses an image into patches.
    ///
    /// # Errors
    /// If the image cannot be taken.
    pub fn image(
        &self,
        image: &RgbImage,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let config = self
            .image
            .with_tokens(options.image_tokens)
            .with_most_tokens(options.most_tokens);
        Ok(self.medium(MediaKind::Image, config.image(image)?, 1, options))
    }

    /// Preprocesses a video into patches, `time_step` positions apart in time.
    ///
    /// # Errors
    /// If the video cannot be taken.
    pub fn video(
        &self,
        frames: &[RgbImage],
        time_step: u32,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let config = self
            .video
            .with_tokens(options.image_tokens)
            .with_most_tokens(options.most_tokens);
        Ok(self.medium(MediaKind::Video, config.video(frames)?, time_step, options))
    }

    /// Prepares a video as [`Self::video`] does, in pieces. Returns `None` if it makes only one
    /// piece, or if a method chooses patches before the encoder: the length of the prompt, which
    /// must be known before anything is encoded, then depends on all of them.
    ///
    /// # Errors
    /// As [`Self::video`].
    pub fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        time_step: u32,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        let methods = options.reductions.methods().iter();
        if methods.clone().any(|method| method.stage() == "preprocess") {
            return Ok(None);
        }
        let config = self
            .video
            .with_tokens(options.image_tokens)
            .with_most_tokens(options.most_tokens);
        let grid = config.video_grid(frames.count(), frames.size()?)?;
        let [times, height, width] = grid;
        let slices = (PIECE_PATCHES / (height * width).max(1)).clamp(1, times);
        if slices == times {
            return Ok(None);
        }
        let units = [height / config.merge_size, width / config.merge_size];
        let run = Run::grid([times, units[0], units[1]], time_step);
        let options = options.clone();
        let values = 3 * config.temporal_patch_size * config.patch_size * config.patch_size;
        let whole = MediaInput {
            kind: MediaKind::Video,
            values: Vec::new(),
            shape: vec![grid.iter().product(), values],
            grid,
            layout: run.clone().into(),
            reduction: InputReduction {
                methods: options.reductions.clone(),
                ..InputReduction::default()
            },
            piece: Some(PieceSize {
                rows: slices * height * width,
                undecoded_bytes: frames.undecoded_bytes(),
            }),
        };
        let piece = slices * config.temporal_patch_size;
        let prepare = move |index: usize, frames: &[RgbImage]| {
            let slices = index * slices..((index + 1) * slices).min(times);
            let patches = config.slices(frames, grid)?;
            let tokens = units[0] * units[1];
            let tokens: Vec<usize> = (slices.start * tokens..slices.end * tokens).collect();
            let piece = self.medium(MediaKind::Video, patches, time_step, &options);
            Ok(MediaInput {
                layout: run.keep(&tokens).into(),
                ..piece
            })
        };
        let pieces = VideoPieces::new(frames, piece, prepare);
        Ok(Some((whole, pieces)))
    }

    fn medium(
        &self,
        kind: MediaKind,
        patches: Patches,
        time_step: u32,
        options: &MediaOptions,
    ) -> MediaInput {
        let Patches { pixel_values, grid } = patches;
        let [t, h, w] = grid;
        let config = match kind {
            MediaKind::Video => &self.video,
            _ => &self.image,
        };
        let (merge, width) = (config.merge_size, pixel_values.len() / (t * h * w).max(1));
        let units = [t, h / merge, w / merge];
        // A patch is a plane of each channel after the other.
        let samples = || config.normalization.samples(&pixel_values, width / 3);
        let reduction = enter(&options.reductions, kind, units, samples);
        let layout = Layout::from(Run::grid(units, time_step));
        let unit = width * merge * merge;
        let (values, layout) = match &reduction.units {
            None => (pixel_values, layout),
            Some(entering) => (
                entering
                    .iter()
                    .flat_map(|i| &pixel_values[i * unit..(i + 1) * unit])
                    .copied()
                    .collect(),
                layout.keep(entering),
            ),
        };
        MediaInput {
            kind,
            shape: vec![values.len() / width.max(1), width],
            values,
            grid,
            layout,
            reduction,
            piece: None,
        }
    }

    /// Tokenizes the conversation.
    ///
    /// # Errors
    /// If template, tokenizer and media do not fit together.
    pub fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let placeholder = |kind| {
            let pad = match kind {
                MediaKind::Video => "video_pad",
                _ => "image_pad",
            };
            format!("<|vision_start|><|{pad}|><|vision_end|>")
        };
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, placeholder)?;
        let ids = text.encode(&rendered)?;
        let is_pad = |id| [self.tokens.image_token_id, self.tokens.video_token_id].contains(&id);
        expand_placeholders(&ids, is_pad, media)
    }
}
