//! Image and video preprocessing of SmolVLM and Idefics3: images are scaled and cut into square tiles,
//! followed by the whole image as one tile; a frame of a video is one tile.
//!
//! The reference is `image_processing_smolvlm.py` and `video_processing_smolvlm.py` of `transformers`
//! 4.57: images as its processor on Pillow, frames as its processor on torchvision, but scaled to
//! `video_sampling.video_size` as the file says, which the reference overrides.

use serde::Deserialize;
use serde_json::Value;

use super::error::PreprocessError;
use super::fields::{filter, parse_file};
use super::filter::Filter;
use super::image::{RgbImage, frame_size};
use super::normalize::Normalization;
use super::resize::{resize, resize_torchvision};
use super::tiles::TileWriter;
use crate::settings::without_nulls;

/// Largest side of an image after the first step, in the reference's code.
const MAX_SIDE: usize = 4096;

/// Settings from `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Longer side of an image after the first step.
    pub longest_edge: usize,
    /// Side of a tile.
    pub tile: usize,
    /// `true` if images are cut into tiles.
    pub splits: bool,
    /// Longer side of a video's frame before it becomes a tile.
    pub video_edge: usize,
    /// Resampling filter of images.
    pub filter: Filter,
    /// Conversion of samples to values.
    pub normalization: Normalization,
}

/// An image or video in tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiles {
    /// `[tiles, 3, side, side]`
    pub values: Vec<f32>,
    /// Rows and columns of tiles, which the whole image follows; zeros for the whole image alone.
    pub grid: [usize; 2],
}

#[derive(Debug, Deserialize)]
struct File {
    do_resize: Option<bool>,
    #[serde(default = "default_true")]
    do_image_splitting: bool,
    size: Option<Edge>,
    max_image_size: Option<Edge>,
    resample: Option<Value>,
    video_sampling: Option<VideoSampling>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Edge {
    longest_edge: usize,
}

#[derive(Debug, Deserialize)]
struct VideoSampling {
    video_size: Option<Edge>,
}

fn default_true() -> bool {
    true
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json`; without one, images are scaled to four tiles of `tile`
    /// pixels.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: &Value, tile: usize) -> Result<Self, PreprocessError> {
        let normalization =
            Normalization::parse_or(&without_nulls(file), Normalization::centered())?;
        let file: File = parse_file(file)?;
        if file.do_resize == Some(false) {
            return Err(PreprocessError::config(
                "do_resize is false, expected true: SmolVLM is only supported with this step",
            ));
        }
        let edge = |edge: Option<Edge>, default| edge.map_or(default, |edge| edge.longest_edge);
        let tile = edge(file.max_image_size, tile);
        let video = file.video_sampling.and_then(|video| video.video_size);
        let config = Self {
            longest_edge: edge(file.size, 4 * tile),
            tile,
            splits: file.do_image_splitting,
            video_edge: edge(video, tile),
            filter: match file.resample {
                None => Filter::Lanczos,
                resample => filter(resample.as_ref())?,
            },
            normalization,
        };
        PreprocessError::check_sizes(&[
            ("max_image_size.longest_edge", config.tile, MAX_SIDE),
            ("size.longest_edge", config.longest_edge, MAX_SIDE),
            (
                "video_sampling.video_size.longest_edge",
                config.video_edge,
                MAX_SIDE,
            ),
        ])?;
        Ok(config)
    }

    /// Returns rows and columns of tiles of an image of this size; zeros if it is one tile.
    pub fn grid(&self, width: usize, height: usize) -> [usize; 2] {
        let (width, height) = self.tiled_size(scaled(width, height, self.longest_edge));
        let grid = [height, width].map(|side| side / self.tile);
        match self.splits && grid != [1, 1] {
            true => grid,
            false => [0, 0],
        }
    }

    /// Scales an image and cuts it into tiles.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn image(&self, image: &RgbImage) -> Result<Tiles, PreprocessError> {
        let size = (image.width(), image.height());
        let grid @ [rows, columns] = self.grid(size.0, size.1);
        let scale = |image: &RgbImage, (width, height)| resize(image, width, height, self.filter);
        let first = scaled(size.0, size.1, self.longest_edge);
        let mut image = scale(image, first)?;
        if self.splits {
            image = scale(&image, self.tiled_size(first))?;
        }
        let mut tiles = TileWriter::new(&self.normalization, self.tile, rows * columns + 1)?;
        for row in 0..rows {
            for column in 0..columns {
                tiles.cut(&image, [row, column]);
            }
        }
        let whole = scale(&image, (self.tile, self.tile))?;
        tiles.cut(&whole, [0, 0]);
        Ok(Tiles {
            values: tiles.finish(),
            grid,
        })
    }

    /// Scales every frame of a video to one tile.
    ///
    /// # Errors
    /// If there are no frames or they differ in size, or there is not enough memory.
    pub fn video(&self, frames: &[RgbImage]) -> Result<Tiles, PreprocessError> {
        let (width, height) = frame_size(frames)?;
        let (width, height) = scaled(width, height, self.video_edge);
        let mut tiles = TileWriter::new(&self.normalization, self.tile, frames.len())?;
        for frame in frames {
            let frame = resize_torchvision(frame, width, height)?;
            let frame = resize_torchvision(&frame, self.tile, self.tile)?;
            tiles.cut(&frame, [0, 0]);
        }
        Ok(Tiles {
            values: tiles.finish(),
            grid: [0, 0],
        })
    }

    /// Returns width and height, rounded up to whole tiles.
    fn tiled_size(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let ratio = width as f64 / height as f64;
        let whole = |side: usize| side.max(1).next_multiple_of(self.tile);
        if width >= height {
            let width = whole(width);
            (width, whole((width as f64 / ratio) as usize))
        } else {
            let height = whole(height);
            (whole((height as f64 * ratio) as usize), height)
        }
    }
}

/// Returns width and height of an image whose longer side is scaled to `longest`, also upwards; the
/// shorter one becomes even.
fn scaled(width: usize, height: usize, longest: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let even = |side: f64| ((side as usize).next_multiple_of(2)).max(1);
    match width >= height {
        true => (longest, even(longest as f64 / ratio)),
        false => (even(longest as f64 * ratio), longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> PreprocessConfig {
        let file = json!({
            "size": {"longest_edge": 390}, "max_image_size": {"longest_edge": 130}, "resample": 1,
        });
        PreprocessConfig::parse(&file, 130).unwrap()
    }

    /// Worked by hand: 131x80 is scaled to 390x238 and then to 390x260; 420x105 to 390x98 and one row
    /// of tiles.
    #[test]
    fn images_become_whole_tiles() {
        assert_eq!(scaled(131, 80, 390), (390, 238));
        assert_eq!(config().grid(131, 80), [2, 3]);
        assert_eq!(scaled(420, 105, 390), (390, 98));
        assert_eq!(config().grid(420, 105), [1, 3]);
        assert_eq!(config().grid(75, 152), [3, 2]);
        assert_eq!(scaled(1, 4000, 390), (1, 390));
        let whole = PreprocessConfig {
            splits: false,
            ..config()
        };
        assert_eq!(whole.grid(131, 80), [0, 0]);
    }

    #[test]
    fn lying_sizes_are_errors() {
        for (file, word) in [
            (json!({"size": {"longest_edge": 0}}), "size.longest_edge"),
            (
                json!({"max_image_size": {"longest_edge": 1_000_000_000u64}}),
                "max_image_size",
            ),
            (json!({"size": {"height": 3}}), "longest_edge"),
            (json!({"resample": 7}), "resample"),
            (json!({"do_resize": false}), "do_resize"),
        ] {
            let error = PreprocessConfig::parse(&file, 130).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
