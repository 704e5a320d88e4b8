//! A decoded image, video or sound.

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::{FrameSelection, MediaError, MediaKind, Source};

/// A decoded medium.
#[derive(Debug, Clone)]
pub enum Media {
    /// A still image.
    Image(RgbImage),
    /// A sequence of frames.
    Video {
        /// The frames.
        frames: Vec<RgbImage>,
        /// Their rate.
        frames_per_second: f32,
    },
    /// A sound in one channel.
    Audio {
        /// Samples from -1 to 1.
        samples: Vec<f32>,
        /// Samples per second.
        sample_rate: u32,
    },
}

/// The memory that the media of one request may take together: as much as one of them alone.
#[derive(Debug)]
pub struct MediaBudget(u64);

impl MediaBudget {
    /// Half of the memory that this process can still have.
    pub fn new() -> Self {
        Self(budget::limit())
    }

    /// Counts a medium.
    ///
    /// # Errors
    /// [`MediaError::Memory`] if the media exceed the budget.
    pub fn hold(&mut self, medium: &Media) -> Result<(), MediaError> {
        let needed = medium.bytes() as u64;
        self.0 = self.0.checked_sub(needed).ok_or(MediaError::Memory {
            needed,
            limit: self.0,
        })?;
        Ok(())
    }
}

impl Default for MediaBudget {
    fn default() -> Self {
        Self::new()
    }
}

impl Media {
    /// Decodes a source as a medium of `kind`; `frames` selects the frames of a video.
    ///
    /// # Errors
    /// If the source holds something else, is damaged, or needs more memory than may be used.
    pub fn read(
        source: &Source,
        kind: MediaKind,
        frames: FrameSelection,
    ) -> Result<Self, MediaError> {
        Ok(match kind {
            MediaKind::Image => Self::Image(source.image()?),
            MediaKind::Video => {
                let video = source.video(frames)?;
                Self::Video {
                    frames: video.frames,
                    frames_per_second: video.frames_per_second,
                }
            }
            MediaKind::Audio => {
                let audio = source.audio()?;
                Self::Audio {
                    samples: audio.samples,
                    sample_rate: audio.sample_rate,
                }
            }
        })
    }

    /// Bytes of its pixels or samples.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Image(image) => image.pixels().len(),
            Self::Video { frames, .. } => frames.iter().map(|frame| frame.pixels().len()).sum(),
            Self::Audio { samples, .. } => size_of_val(&samples[..]),
        }
    }

    /// The kind of medium.
    pub fn kind(&self) -> MediaKind {
        match self {
            Self::Image(_) => MediaKind::Image,
            Self::Video { .. } => MediaKind::Video,
            Self::Audio { .. } => MediaKind::Audio,
        }
    }
}
