//! Omission of frames in which nothing moves.

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;
use super::frame_stream::{Frames, Outline};
use super::thumbnail::Thumbnail;

/// The frames of a video that differ enough from the last one before them that passed; all frames
/// without a threshold.
pub(super) struct MotionGate {
    frames: Box<dyn Frames>,
    /// Minimum mean absolute difference, from 0 to 255.
    threshold: Option<f32>,
    last: Option<Thumbnail>,
    image: Option<RgbImage>,
    skipped: usize,
}

impl MotionGate {
    pub fn new(frames: Box<dyn Frames>, threshold: Option<f32>) -> Self {
        Self {
            frames,
            threshold,
            last: None,
            image: None,
            skipped: 0,
        }
    }

    /// Returns the number of frames omitted so far.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Returns what is known beforehand: with a threshold, not the number of frames.
    pub fn outline(&self) -> Outline {
        let outline = self.frames.outline();
        Outline {
            length: outline.length.filter(|_| self.threshold.is_none()),
            ..outline
        }
    }

    /// Moves to the next frame that passes and returns its time.
    pub fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        while let Some(time) = self.frames.advance()? {
            let Some(threshold) = self.threshold else {
                return Ok(Some(time));
            };
            let image = self.frames.image()?;
            let thumbnail = Thumbnail::new(&image);
            let moved = self.last.as_ref().map(|last| last.difference(&thumbnail));
            if moved.is_none_or(|moved| moved >= f64::from(threshold)) {
                (self.last, self.image) = (Some(thumbnail), Some(image));
                return Ok(Some(time));
            }
            self.skipped += 1;
        }
        Ok(None)
    }

    /// Returns the current frame.
    pub fn image(&mut self) -> Result<RgbImage, MediaError> {
        match &self.image {
            Some(image) => Ok(image.clone()),
            None => self.frames.image(),
        }
    }

    /// Returns the time in seconds at which the current frame ends.
    pub fn end(&self) -> f64 {
        self.frames.end()
    }
}
