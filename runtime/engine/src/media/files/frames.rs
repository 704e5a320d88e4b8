//! Decoded videos and the selection of their frames.

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::error::{MAX_FRAMES, MediaError};

/// Decoded frames in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// The frames, at least one.
    pub frames: Vec<RgbImage>,
    /// Frames per second of these frames.
    pub frames_per_second: f32,
}

/// Selection of the frames to keep; others are not held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameSelection {
    /// All frames.
    All,
    /// This many, evenly spaced from the first one: frame `i * frames / n` rounded down, as in the
    /// sampling of the reference's video processor. All frames if there are not more.
    Uniform(usize),
}

/// Collector of the selected frames of a video.
pub(super) struct Picker {
    selection: FrameSelection,
    /// Number of frames according to the video.
    total: usize,
    seen: usize,
    kept: Vec<RgbImage>,
}

impl Picker {
    pub fn new(selection: FrameSelection, total: usize) -> Self {
        Self {
            selection,
            total,
            seen: 0,
            kept: Vec::new(),
        }
    }

    /// Returns the index of the next selected frame, if any.
    fn next(&self) -> Option<usize> {
        let kept = self.kept.len();
        match self.selection {
            FrameSelection::Uniform(wanted) if wanted < self.total => {
                // The product may exceed 64 bits.
                let next = kept as u128 * self.total as u128 / wanted.max(1) as u128;
                (kept < wanted).then_some(next as usize)
            }
            _ => (kept < self.total).then_some(kept),
        }
    }

    /// Returns `true` if no further frame is selected.
    pub fn is_done(&self) -> bool {
        self.next().is_none()
    }

    /// Returns `true` if the next frame is selected.
    pub fn wants(&self) -> bool {
        self.next() == Some(self.seen)
    }

    /// Takes the next frame, which is created only if it is selected.
    pub fn offer(
        &mut self,
        frame: impl FnOnce() -> Result<RgbImage, MediaError>,
    ) -> Result<(), MediaError> {
        if self.wants() {
            let frame = frame()?;
            let pixels = self.pixels(frame.width(), frame.height())?;
            // Checked once; later, frames already kept would count twice.
            if self.kept.is_empty() {
                budget::check(3 * pixels)?;
            }
            self.kept.push(frame);
        }
        self.seen += 1;
        Ok(())
    }

    /// Checks that all selected frames of this size fit into memory.
    pub fn check_room(&self, width: usize, height: usize) -> Result<(), MediaError> {
        budget::check(3 * self.pixels(width, height)?)
    }

    /// Returns the pixels of all selected frames of this size.
    fn pixels(&self, width: usize, height: usize) -> Result<u64, MediaError> {
        let frames = match self.selection {
            FrameSelection::Uniform(wanted) => wanted.min(self.total),
            FrameSelection::All => self.total,
        };
        let pixels = width.saturating_mul(height).saturating_mul(frames);
        if pixels > RgbImage::MAX_PIXELS || frames > MAX_FRAMES {
            return Err(MediaError::TooManyFrames {
                frames,
                width,
                height,
            });
        }
        Ok(pixels as u64)
    }

    /// Builds the video from the frame rate of the source.
    pub fn finish(self, format: &'static str, frames_per_second: f32) -> Result<Video, MediaError> {
        if self.kept.is_empty() {
            return Err(MediaError::damaged(format, "it has no complete frame"));
        }
        let share = self.kept.len() as f32 / self.total.max(1) as f32;
        Ok(Video {
            frames_per_second: match self.selection {
                FrameSelection::Uniform(_) => frames_per_second * share,
                FrameSelection::All => frames_per_second,
            },
            frames: self.kept,
        })
    }
}
