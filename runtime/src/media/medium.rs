//! Decoded images, videos and audio.

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::{FrameSelection, MediaError, MediaKind, Source};

/// A decoded image, video or audio clip.
#[derive(Debug, Clone)]
pub enum Media {
    /// A still image.
    Image(RgbImage),
    /// A sequence of frames.
    Video {
        /// The frames.
        frames: Vec<RgbImage>,
        /// Frames per second.
        frames_per_second: f32,
    },
    /// Mono audio.
    Audio {
        /// Samples from -1 to 1.
        samples: Vec<f32>,
        /// Samples per second.
        sample_rate: u32,
    },
}

/// The memory limit for all media of a request together, equal to that of a single one.
#[derive(Debug)]
pub struct MediaBudget(u64);

impl MediaBudget {
    /// Creates a limit of half the memory that this process can allocate.
    pub fn new() -> Self {
        Self(budget::limit())
    }

    /// Subtracts an item's memory from the limit.
    ///
    /// # Errors
    /// [`MediaError::Memory`] if the media exceed the limit.
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
    /// Decodes a source of kind `kind`; `frames` selects the frames of a video.
    ///
    /// # Errors
    /// If the source has another kind, is damaged or exceeds the memory limit.
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

    /// Returns the bytes of its pixels or samples.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Image(image) => image.pixels().len(),
            Self::Video { frames, .. } => frames.iter().map(|frame| frame.pixels().len()).sum(),
            Self::Audio { samples, .. } => size_of_val(&samples[..]),
        }
    }

    /// Returns the kind.
    pub fn kind(&self) -> MediaKind {
        match self {
            Self::Image(_) => MediaKind::Image,
            Self::Video { .. } => MediaKind::Video,
            Self::Audio { .. } => MediaKind::Audio,
        }
    }
}
