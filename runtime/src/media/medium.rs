//! A decoded image, video or sound.

use edge_lmm_models::preprocess::RgbImage;

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

    /// The kind of medium.
    pub fn kind(&self) -> MediaKind {
        match self {
            Self::Image(_) => MediaKind::Image,
            Self::Video { .. } => MediaKind::Video,
            Self::Audio { .. } => MediaKind::Audio,
        }
    }
}
