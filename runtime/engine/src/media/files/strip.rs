//! Frame strips: the frames of a video side by side in an image.

use std::path::Path;

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;
use super::frame_stream::{Frames, Length, Outline};
use super::video::DEFAULT_FRAME_RATE;

/// Returns the number of frames N if the name is that of a frame strip.
pub(super) fn strip_frames(path: &Path) -> Option<usize> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".png")?;
    let (_, count) = stem.rsplit_once(".strip")?;
    let all_digits = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
    count.parse().ok().filter(|&n| all_digits && n > 0)
}

/// The frames of a strip, or an image as the only frame of a video.
pub(super) struct StripFrames {
    strip: RgbImage,
    frames: usize,
    seconds_per_frame: f64,
    /// Number of frames passed, including the current one.
    passed: usize,
}

impl StripFrames {
    /// Cuts an image into `frames` frames, the first one at the left.
    pub fn new(strip: RgbImage, frames: usize) -> Result<Self, MediaError> {
        if !strip.width().is_multiple_of(frames) {
            return Err(MediaError::damaged(
                "frame strip",
                format!(
                    "its width of {} pixels is not divisible by {frames} frames",
                    strip.width()
                ),
            ));
        }
        Ok(Self {
            strip,
            frames,
            seconds_per_frame: 1.0 / DEFAULT_FRAME_RATE,
            passed: 0,
        })
    }

    /// A video of one frame that is shown for `seconds`.
    pub fn still(image: RgbImage, seconds: f64) -> Self {
        Self {
            strip: image,
            frames: 1,
            seconds_per_frame: seconds,
            passed: 0,
        }
    }

    fn width(&self) -> usize {
        self.strip.width() / self.frames
    }
}

impl Frames for StripFrames {
    fn outline(&self) -> Outline {
        Outline {
            format: "frame strip",
            size: Some((self.width(), self.strip.height())),
            length: Some(Length {
                frames: self.frames,
                seconds: self.frames as f64 * self.seconds_per_frame,
            }),
        }
    }

    fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        if self.passed == self.frames {
            return Ok(None);
        }
        self.passed += 1;
        Ok(Some((self.passed - 1) as f64 * self.seconds_per_frame))
    }

    fn image(&mut self) -> Result<RgbImage, MediaError> {
        let width = self.width();
        let columns = (self.passed - 1) * width * 3..self.passed * width * 3;
        let rows = 0..self.strip.height();
        let pixels = rows.flat_map(|y| &self.strip.row(y)[columns.clone()]);
        let pixels = pixels.copied().collect();
        Ok(RgbImage::new(width, self.strip.height(), pixels)?)
    }

    fn end(&self) -> f64 {
        self.passed as f64 * self.seconds_per_frame
    }
}
