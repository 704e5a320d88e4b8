//! Limits on the frames that are held together.

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::error::{MAX_FRAMES, MediaError};

/// Counter of the frames that a selection holds. Memory is compared with the limit at its creation:
/// later, the frames held would count twice.
pub(super) struct Collector {
    limit: u64,
    frames: usize,
    bytes: u64,
}

impl Collector {
    pub fn new() -> Self {
        Self {
            limit: budget::limit(),
            frames: 0,
            bytes: 0,
        }
    }

    /// Checks that `frames` frames of this size fit into memory.
    ///
    /// # Errors
    /// If they do not, or are too many.
    pub fn check(&self, (width, height): (usize, usize), frames: usize) -> Result<(), MediaError> {
        let pixels = width.saturating_mul(height).saturating_mul(frames);
        if pixels > RgbImage::MAX_PIXELS || frames > MAX_FRAMES {
            return Err(MediaError::TooManyFrames {
                frames,
                width,
                height,
            });
        }
        self.check_bytes(3 * pixels as u64)
    }

    fn check_bytes(&self, needed: u64) -> Result<(), MediaError> {
        match self.limit {
            limit if budget::is_large(needed) && needed > limit => {
                Err(MediaError::Memory { needed, limit })
            }
            _ => Ok(()),
        }
    }

    /// Counts a frame.
    ///
    /// # Errors
    /// If it does not fit into memory beside the frames that were counted before.
    pub fn hold(&mut self, image: &RgbImage) -> Result<(), MediaError> {
        self.frames += 1;
        self.bytes += image.pixels().len() as u64;
        if self.frames > MAX_FRAMES || self.bytes > 3 * RgbImage::MAX_PIXELS as u64 {
            return Err(MediaError::TooManyFrames {
                frames: self.frames,
                width: image.width(),
                height: image.height(),
            });
        }
        self.check_bytes(self.bytes)
    }

    /// Stops counting a frame, which is dropped.
    pub fn release(&mut self, image: &RgbImage) {
        self.frames -= 1;
        self.bytes -= image.pixels().len() as u64;
    }
}
