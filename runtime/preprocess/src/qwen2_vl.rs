//! Image and video preprocessing of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: resizing to a whole number of merged
//! patches within pixel limits, normalization and cutting into patches.
//!
//! The reference is `image_processing_qwen2_vl.py`, `video_processing_qwen2_vl.py` and
//! `video_processing_qwen3_vl.py` of `transformers` 4.57: images as its processor on Pillow, videos as its processor on torchvision.
//! One difference: the reference mistakes the height of images with 1 or 3 rows for the number of
//! channels; here they are treated like all others.

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{PreprocessError, allocate};
use super::fields::{filter, parse_file};
use super::filter::Filter;
use super::image::{RgbImage, frame_size};
use super::normalize::{Normalization, SampleTable};
use super::resize::{resize, resize_torchvision};
use crate::settings::without_nulls;

/// Maximum aspect ratio of an image.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// The processors of a family: what their files may omit, and the meaning of the limits of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Processors {
    title: &'static str,
    image_pixels: PixelRange,
    video_pixels: PixelRange,
    patch_size: usize,
    /// `true` if samples are mapped to -1..1 by default, otherwise CLIP's normalization.
    centered: bool,
    /// `true` if the limits of a video are those of all frames together.
    whole_videos: bool,
}

impl Processors {
    /// Those of Qwen2-VL and Qwen2.5-VL.
    pub const QWEN2_VL: Self = Self {
        title: "Qwen2-VL",
        image_pixels: PixelRange {
            min: 56 * 56,
            max: 28 * 28 * 1280,
        },
        video_pixels: PixelRange {
            min: 128 * 28 * 28,
            max: 28 * 28 * 768,
        },
        patch_size: 14,
        centered: false,
        whole_videos: false,
    };

    /// Those of Qwen3-VL.
    pub const QWEN3_VL: Self = Self {
        title: "Qwen3-VL",
        image_pixels: PixelRange {
            min: 1 << 16,
            max: 1 << 24,
        },
        video_pixels: PixelRange {
            min: 1 << 12,
            max: 3 << 23,
        },
        patch_size: 16,
        centered: true,
        whole_videos: true,
    };

    /// Those of Qwen3.5.
    pub const QWEN3_5: Self = Self {
        title: "Qwen3.5",
        ..Self::QWEN3_VL
    };

    /// Reads the configuration of an image processor; without one, the defaults of the reference
    /// apply.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn images(&self, file: Option<&Value>) -> Result<PreprocessConfig, PreprocessError> {
        PreprocessConfig::parse(file, self, self.image_pixels)
    }

    /// Reads the configuration of a video processor.
    ///
    /// # Errors
    /// As [`Self::images`].
    pub fn videos(&self, file: Option<&Value>) -> Result<PreprocessConfig, PreprocessError> {
        let config = PreprocessConfig::parse(file, self, self.video_pixels);
        let config = config.map_err(|error| match error {
            PreprocessError::Config(message) => {
                PreprocessError::config(format!("video processor: {message}"))
            }
            other => other,
        });
        Ok(PreprocessConfig {
            whole_videos: self.whole_videos,
            ..config?
        })
    }

    /// Returns the configuration of the video processor among those of a checkpoint: older
    /// checkpoints of Qwen2-VL have none, their `preprocessor_config.json` applies to both.
    pub fn video_file<'a>(
        &self,
        image: Option<&'a Value>,
        video: Option<&'a Value>,
    ) -> Option<&'a Value> {
        match self.whole_videos {
            true => video,
            false => video.or(image),
        }
    }
}

/// Limits of the number of pixels after resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelRange {
    /// Minimum; smaller images are scaled up.
    pub min: usize,
    /// Maximum; larger images are scaled down.
    pub max: usize,
}

/// Settings of an image processor or a video processor.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Pixels of an image or a video frame.
    pub pixels: PixelRange,
    /// The limits of [`Self::pixels`] are those of all frames of a video together.
    pub whole_videos: bool,
    /// Maximum tokens of all frames of a video, if limited.
    pub video_tokens: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Patches per side of a square that becomes one token.
    pub merge_size: usize,
    /// Conversion of samples to values.
    pub normalization: Normalization,
    /// Maximum tokens of an image or video; larger ones are rejected before memory is allocated.
    pub most_tokens: usize,
}

/// Fields of the file. The limits have three spellings: `min_pixels` and `max_pixels`, the same
/// inside `size`, and `size` with `shortest_edge` and `longest_edge`, which are pixel counts in
/// spite of their names. Files may have several of them.
#[derive(Debug, Deserialize)]
struct File {
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: Option<Value>,
    patch_size: Option<usize>,
    #[serde(default = "default_two")]
    temporal_patch_size: usize,
    #[serde(default = "default_two")]
    merge_size: usize,
    resample: Option<Value>,
    do_resize: Option<bool>,
    #[serde(default)]
    cap_pixels_per_frame: bool,
    #[serde(default = "default_video_tokens")]
    max_video_tokens: usize,
}

fn default_two() -> usize {
    2
}

fn default_video_tokens() -> usize {
    128_000
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
}

/// An image or video in patches.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// `[grid_t * grid_h * grid_w, 3 * temporal_patch_size * patch_size * patch_size]`. Patches
    /// that are merged into one token are adjacent; the values of a patch are ordered channel,
    /// frame, row, column.
    pub pixel_values: Vec<f32>,
    /// Patches in time, height and width.
    pub grid: [usize; 3],
}

impl File {
    fn pixels(&self, default: PixelRange) -> Result<PixelRange, PreprocessError> {
        let size: Size = match &self.size {
            None => Size {
                shortest_edge: Some(default.min),
                longest_edge: Some(default.max),
                ..Size::default()
            },
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| size_error(value))?,
        };
        let min = (self.min_pixels).or(size.shortest_edge).or(size.min_pixels);
        let max = (self.max_pixels).or(size.longest_edge).or(size.max_pixels);
        match (min, max, &self.size) {
            (Some(min), Some(max), _) => Ok(PixelRange { min, max }),
            (_, _, size) => Err(size_error(size.as_ref().unwrap_or(&Value::Null))),
        }
    }
}

fn size_error(size: &Value) -> PreprocessError {
    PreprocessError::config(format!(
        "size is {size}, expected {{\"shortest_edge\", \"longest_edge\"}} or \
         {{\"min_pixels\", \"max_pixels\"}}: the fewest and the most pixels"
    ))
}

impl PreprocessConfig {
    fn parse(
        file: Option<&Value>,
        processors: &Processors,
        pixels: PixelRange,
    ) -> Result<Self, PreprocessError> {
        let value = file.map_or_else(|| json!({}), without_nulls);
        let file: File = parse_file(&value)?;
        if file.do_resize == Some(false) {
            return Err(PreprocessError::config(format!(
                "do_resize is false, expected true: {} is only supported with this step",
                processors.title
            )));
        }
        if filter(file.resample.as_ref())? != Filter::Bicubic {
            return Err(PreprocessError::config(format!(
                "resample is {}, expected 3 (bicubic), with which {} was trained",
                value["resample"], processors.title
            )));
        }
        let normalization = match processors.centered {
            true => Normalization::centered(),
            false => Normalization::default(),
        };
        let config = Self {
            pixels: file.pixels(pixels)?,
            whole_videos: false,
            video_tokens: file.cap_pixels_per_frame.then_some(file.max_video_tokens),
            patch_size: file.patch_size.unwrap_or(processors.patch_size),
            temporal_patch_size: file.temporal_patch_size,
            merge_size: file.merge_size,
            normalization: Normalization::parse_or(&value, normalization)?,
            most_tokens: usize::MAX,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), PreprocessError> {
        PreprocessError::check_sizes(&[
            ("patch_size", self.patch_size, 1 << 10),
            ("temporal_patch_size", self.temporal_patch_size, 1 << 6),
            ("merge_size", self.merge_size, 1 << 6),
        ])?;
        let PixelRange { min, max } = self.pixels;
        if min > max {
            return Err(PreprocessError::config(format!(
                "min_pixels is {min}, more than max_pixels, which is {max}"
            )));
        }
        Ok(())
    }

    /// Returns the configuration with other limits: minimum and maximum tokens of an image or of a
    /// group of frames. As with limits in pixels, an image that is scaled up can exceed the maximum
    /// slightly, because its sides are rounded up.
    #[must_use]
    pub fn with_tokens(&self, tokens: Option<(usize, usize)>) -> Self {
        let mut config = self.clone();
        if let Some((min, max)) = tokens {
            let pixels = self.factor() * self.factor();
            config.pixels = PixelRange {
                min: min.saturating_mul(pixels),
                max: max.saturating_mul(pixels),
            };
            config.whole_videos = false;
        }
        config
    }

    /// Returns the configuration with another maximum of tokens.
    #[must_use]
    pub fn with_most_tokens(self, most_tokens: usize) -> Self {
        Self {
            most_tokens,
            ..self
        }
    }

    /// Returns the side of a token in pixels.
    fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// Cuts an image into patches; it is repeated in all frames of its temporal patch.
    ///
    /// # Errors
    /// If the aspect ratio is too extreme or the resized image is too large.
    pub fn image(&self, image: &RgbImage) -> Result<Patches, PreprocessError> {
        let size = (image.width(), image.height());
        let (height, width) = self.resized(size, self.pixels, 1)?;
        let resized = resize(image, width, height, Filter::Bicubic)?;
        let grid = self.grid([1, height, width])?;
        let mut cutter = Cutter::new(self, grid, self.normalization.table())?;
        cutter.cut(&[resized]);
        Ok(cutter.finish())
    }

    /// Cuts a video into patches; the last frame is repeated until the last temporal patch is full.
    ///
    /// # Errors
    /// If there are no frames or they differ in size, or as [`Self::image`].
    pub fn video(&self, frames: &[RgbImage]) -> Result<Patches, PreprocessError> {
        let grid = self.video_grid(frames.len(), frame_size(frames)?)?;
        self.slices(frames, grid)
    }

    /// Returns the patches of a video in time, height and width, from the number of its frames and
    /// their width and height.
    ///
    /// # Errors
    /// As [`Self::video`].
    pub fn video_grid(
        &self,
        frames: usize,
        size: (usize, usize),
    ) -> Result<[usize; 3], PreprocessError> {
        let together = if self.whole_videos { frames } else { 1 };
        let (height, width) = self.resized(size, self.frame_pixels(frames), together)?;
        let times = frames.div_ceil(self.temporal_patch_size);
        self.grid([times, height, width])
    }

    /// Cuts frames of a video with `grid` patches: those of whole temporal patches, or the last
    /// ones.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn slices(
        &self,
        frames: &[RgbImage],
        [_, rows, columns]: [usize; 3],
    ) -> Result<Patches, PreprocessError> {
        let (height, width) = (rows * self.patch_size, columns * self.patch_size);
        let times = frames.len().div_ceil(self.temporal_patch_size);
        let table = self.normalization.fused_table();
        let mut cutter = Cutter::new(self, [times, rows, columns], table)?;
        for group in frames.chunks(self.temporal_patch_size) {
            let resized: Vec<RgbImage> = group
                .iter()
                .map(|frame| resize_torchvision(frame, width, height))
                .collect::<Result<_, _>>()?;
            cutter.cut(&resized);
        }
        Ok(cutter.finish())
    }

    /// Returns the patches of `times` groups of frames of `height` by `width` pixels.
    fn grid(&self, [times, height, width]: [usize; 3]) -> Result<[usize; 3], PreprocessError> {
        let grid = [times, height / self.patch_size, width / self.patch_size];
        let patches = grid
            .iter()
            .fold(1, |n: usize, &side| n.saturating_mul(side));
        let tokens = patches / (self.merge_size * self.merge_size);
        if tokens > self.most_tokens {
            return Err(PreprocessError::TooManyTokens {
                tokens,
                limit: self.most_tokens,
            });
        }
        Ok(grid)
    }

    /// Returns the pixel limits of each of `frames` frames. The limit for all of them is nine
    /// tenths of the allowed tokens, in pixels, but slightly more than the lower limit at least.
    fn frame_pixels(&self, frames: usize) -> PixelRange {
        let PixelRange { min, max } = self.pixels;
        let Some(tokens) = self.video_tokens else {
            return self.pixels;
        };
        let all = (tokens as f64 * (self.factor() * self.factor()) as f64 * 0.9) as usize;
        let each = all.saturating_mul(self.temporal_patch_size) / frames.max(1);
        PixelRange {
            min,
            max: max.min(each).max((min as f64 * 1.05) as usize),
        }
    }

    /// Returns height and width of `together` frames that share the limits `pixels`.
    fn resized(
        &self,
        (width, height): (usize, usize),
        pixels: PixelRange,
        together: usize,
    ) -> Result<(usize, usize), PreprocessError> {
        let frames = match together {
            1 => Together::ONE,
            frames => Together::new(frames, self.temporal_patch_size),
        };
        resize_within(height, width, self.factor(), pixels, frames)
    }
}

/// Returns height and width after resizing: multiples of `factor` with `min_pixels` to `max_pixels`
/// pixels, preserving the aspect ratio as closely as possible. Rounding may exceed the limits
/// slightly.
///
/// # Errors
/// If one side is more than 200 times the other, or if the result has no pixels or too many.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<(usize, usize), PreprocessError> {
    let pixels = PixelRange {
        min: min_pixels,
        max: max_pixels,
    };
    resize_within(height, width, factor, pixels, Together::ONE)
}

/// Numbers of frames that share the limits of pixels.
#[derive(Debug, Clone, Copy)]
struct Together {
    /// The number that is compared with the limits: whole temporal patches.
    rounded: usize,
    /// The number that the size is computed from.
    frames: usize,
}

impl Together {
    /// An image, or a frame with limits of its own.
    const ONE: Self = Self {
        rounded: 1,
        frames: 1,
    };

    /// As in the reference, halves are rounded to even, so that five frames count as four.
    fn new(frames: usize, patch: usize) -> Self {
        let patches = (frames as f64 / patch as f64).round_ties_even() as usize;
        Self {
            rounded: patches.max(1) * patch,
            frames,
        }
    }
}

/// Computes [`smart_resize`] of frames that share the limits.
fn resize_within(
    height: usize,
    width: usize,
    factor: usize,
    PixelRange {
        min: min_pixels,
        max: max_pixels,
    }: PixelRange,
    together: Together,
) -> Result<(usize, usize), PreprocessError> {
    if height == 0 || width == 0 {
        return Err(PreprocessError::Empty { width, height });
    }
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let ratio = h.max(w) / h.min(w);
    if ratio > MAX_ASPECT_RATIO {
        return Err(PreprocessError::AspectRatio {
            width,
            height,
            ratio,
            limit: MAX_ASPECT_RATIO,
        });
    }
    let multiple = |units: f64| (units as usize).saturating_mul(factor);
    // Python rounds halves to even.
    let nearest = |side: f64| multiple((side / f).round_ties_even());
    let (mut new_height, mut new_width) = (nearest(h), nearest(w));
    let pixels = new_height
        .saturating_mul(new_width)
        .saturating_mul(together.rounded);
    let all = h * w * together.frames as f64;
    if pixels > max_pixels {
        let beta = (all / max_pixels as f64).sqrt();
        new_height = multiple((h / beta / f).floor()).max(factor);
        new_width = multiple((w / beta / f).floor()).max(factor);
    } else if pixels < min_pixels {
        let beta = (min_pixels as f64 / all).sqrt();
        new_height = multiple((h * beta / f).ceil());
        new_width = multiple((w * beta / f).ceil());
    }
    if new_height == 0 || new_width == 0 {
        return Err(PreprocessError::ResizedAway {
            width,
            height,
            new_width,
            new_height,
        });
    }
    RgbImage::bytes(new_width, new_height)?;
    Ok((new_height, new_width))
}

/// Writer of patches, one group of frames at a time.
struct Cutter {
    table: SampleTable,
    values: Vec<f32>,
    grid: [usize; 3],
    patch: usize,
    frames: usize,
    merge: usize,
}

impl Cutter {
    /// Creates a writer for `grid` patches in time, height and width.
    fn new(
        config: &PreprocessConfig,
        grid: [usize; 3],
        table: SampleTable,
    ) -> Result<Self, PreprocessError> {
        let side = config.patch_size;
        let len = [side, side, 3, config.temporal_patch_size]
            .iter()
            .chain(&grid)
            .fold(1, |len: usize, &n| len.saturating_mul(n));
        Ok(Self {
            table,
            values: allocate(len)?,
            grid,
            patch: side,
            frames: config.temporal_patch_size,
            merge: config.merge_size,
        })
    }

    /// Cuts 1 to `temporal_patch_size` frames; the last one replaces missing frames.
    fn cut(&mut self, frames: &[RgbImage]) {
        let [_, rows, columns] = self.grid;
        for y in (0..rows).step_by(self.merge) {
            for x in (0..columns).step_by(self.merge) {
                for dy in 0..self.merge {
                    for dx in 0..self.merge {
                        self.cut_patch(frames, y + dy, x + dx);
                    }
                }
            }
        }
    }

    fn cut_patch(&mut self, frames: &[RgbImage], y: usize, x: usize) {
        let side = self.patch;
        for (channel, table) in self.table.iter().enumerate() {
            for i in 0..self.frames {
                let frame = &frames[i.min(frames.len() - 1)];
                for row in y * side..(y + 1) * side {
                    let pixels = &frame.row(row)[x * side * 3..(x + 1) * side * 3];
                    let values = pixels
                        .chunks_exact(3)
                        .map(|p| table[usize::from(p[channel])]);
                    self.values.extend(values);
                }
            }
        }
    }

    fn finish(self) -> Patches {
        Patches {
            pixel_values: self.values,
            grid: self.grid,
        }
    }
}
