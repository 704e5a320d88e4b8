//! Images, videos and prompts of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, and images and videos of
//! Qwen2.5-Omni.

use std::ops::Range;

use serde::Deserialize;

use crate::error::ModelError;
use crate::family::ModelFiles;
use crate::layout::{Layout, Piece, Run};
use crate::media::{
    FrameTimes, InputReduction, MediaInput, MediaKind, MediaOptions, PieceSize, VideoFrames,
    VideoPieces,
};
use crate::preprocess::RgbImage;
use crate::preprocess::qwen2_vl::{Patches, PreprocessConfig, Processors};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::duplicates::enter;

/// The properties that differ between the families.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// Defaults of the image and the video processor.
    pub processors: Processors,
    /// The template of the published checkpoints, for those that come without one.
    pub template: &'static str,
}

/// Template of Qwen2-VL and Qwen2.5-VL.
const QWEN2_VL_TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Template of Qwen3-VL.
const QWEN3_VL_TEMPLATE: &str = "{% for message in messages %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Template of Qwen3.5. The answer begins after an empty thought.
const QWEN3_5_TEMPLATE: &str = "{% for message in messages %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}";

impl Variant {
    /// Qwen2-VL and Qwen2.5-VL.
    pub const QWEN2_VL: Self = Self {
        processors: Processors::QWEN2_VL,
        template: QWEN2_VL_TEMPLATE,
    };

    /// Qwen3-VL.
    pub const QWEN3_VL: Self = Self {
        processors: Processors::QWEN3_VL,
        template: QWEN3_VL_TEMPLATE,
    };

    /// Qwen3.5.
    pub const QWEN3_5: Self = Self {
        processors: Processors::QWEN3_5,
        template: QWEN3_5_TEMPLATE,
    };
}

/// The text of a video in a rendered prompt.
const VIDEO_MARK: &str = "<|vision_start|><|video_pad|><|vision_end|>";

/// How a prompt tells the time of a video's temporal patches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum VideoTime {
    /// By temporal positions this far apart.
    Steps(u32),
    /// By temporal positions that are multiples of a number, rounded down.
    Multiples(f32),
    /// By text before each temporal patch.
    Stamps(Stamps),
}

/// Timestamps in text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stamps {
    /// Number of frames.
    pub frames: usize,
    /// Their times.
    pub times: FrameTimes,
    /// The markers around the whole video stay, besides those around each temporal patch.
    pub outer_markers: bool,
}

impl Stamps {
    /// Returns the text before a temporal patch of `size` frames: the mean time of its first and its
    /// last frame. The last frame of the video stands for missing ones.
    fn text(&self, patch: usize, size: usize) -> String {
        let ends = [patch * size, (patch + 1) * size - 1]
            .map(|frame| self.times.of(frame.min(self.frames.saturating_sub(1))));
        format!("<{:.1} seconds>", (ends[0] + ends[1]) / 2.0)
    }

    /// Returns the layout of the temporal patches `patches` of `grid` tokens in all.
    fn layout(&self, grid: [usize; 3], patches: Range<usize>, size: usize) -> Layout {
        let [times, height, width] = grid;
        let marker = |is_there: bool, marker: &str| match self.outer_markers && is_there {
            true => marker.to_owned(),
            false => String::new(),
        };
        let pieces = patches.flat_map(|patch| {
            let before = marker(patch == 0, "<|vision_start|>") + &self.text(patch, size);
            let after = marker(patch + 1 == times, "<|vision_end|>");
            [
                Piece::Text(before + "<|vision_start|>"),
                Piece::Run(Run::grid([1, height, width], 1)),
                Piece::Text("<|vision_end|>".to_owned() + &after),
            ]
        });
        Layout::new(pieces.collect())
    }
}

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

impl MediaTokens {
    /// Creates the tokens of images and videos.
    pub fn new(image: u32, video: u32) -> Self {
        Self {
            image_token_id: image,
            video_token_id: video,
        }
    }
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
    template: &'static str,
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
        Variant {
            processors,
            template,
        }: Variant,
    ) -> Result<Self, ModelError> {
        let image = files.preprocessor.as_ref();
        let video = processors.video_file(image, files.video_preprocessor.as_ref());
        let input = Self {
            image: processors.images(image)?,
            video: processors.videos(video)?,
            tokens,
            template,
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
        let patches = config.image(image)?;
        Ok(self.medium(MediaKind::Image, patches, &VideoTime::Steps(1), options))
    }

    /// Preprocesses a video into patches.
    ///
    /// # Errors
    /// If the video cannot be taken.
    pub fn video(
        &self,
        frames: &[RgbImage],
        time: &VideoTime,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let config = self
            .video
            .with_tokens(options.image_tokens)
            .with_most_tokens(options.most_tokens);
        Ok(self.medium(MediaKind::Video, config.video(frames)?, time, options))
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
        time: &VideoTime,
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
        let units = [times, height / config.merge_size, width / config.merge_size];
        let (options, video_time) = (options.clone(), time.clone());
        let values = 3 * config.temporal_patch_size * config.patch_size * config.patch_size;
        let whole = MediaInput {
            kind: MediaKind::Video,
            values: Vec::new(),
            shape: vec![grid.iter().product(), values],
            grid,
            layout: self.layout(units, time, 0..times),
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
            let piece = self.medium(MediaKind::Video, patches, &video_time, &options);
            Ok(MediaInput {
                layout: self.layout(units, &video_time, slices),
                ..piece
            })
        };
        let pieces = VideoPieces::new(frames, piece, prepare);
        Ok(Some((whole, pieces)))
    }

    /// Returns the place in the prompt of the temporal patches `patches` of `units` tokens in all.
    fn layout(&self, units: [usize; 3], time: &VideoTime, patches: Range<usize>) -> Layout {
        match time {
            VideoTime::Steps(step) => slices(Run::grid(units, *step), units, patches),
            VideoTime::Multiples(step) => {
                let run = Run::timed_grid(units, |i| (i as f32 * step) as u32);
                slices(run, units, patches)
            }
            VideoTime::Stamps(stamps) => stamps.layout(units, patches, self.frames()),
        }
    }

    fn medium(
        &self,
        kind: MediaKind,
        patches: Patches,
        time: &VideoTime,
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
        let layout = self.layout(units, time, 0..t);
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
        let rendered = text.render(conversation, self.template, placeholder)?;
        // Timestamps stand in the place of the video with its markers.
        let stamped: Vec<&Layout> = media.iter().copied().filter(|m| m.has_text()).collect();
        let rendered = match stamped.is_empty() {
            true => rendered,
            false => rendered.with_media(VIDEO_MARK, &stamped, "<|video_pad|>")?,
        };
        let ids = text.encode(&rendered)?;
        let is_pad = |id| [self.tokens.image_token_id, self.tokens.video_token_id].contains(&id);
        expand_placeholders(&ids, is_pad, media)
    }
}

/// Returns the tokens of the temporal patches `patches` of a run of `units` tokens.
fn slices(run: Run, units: [usize; 3], patches: Range<usize>) -> Layout {
    let tokens = units[1] * units[2];
    let tokens: Vec<usize> = (patches.start * tokens..patches.end * tokens).collect();
    run.keep(&tokens).into()
}
