//! A decoded image, video or sound.

use std::path::Path;

use edge_lmm_models::preprocess::RgbImage;

use super::{FrameSelection, MediaError, MediaKind, load_audio, load_image, load_video};

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
    /// Reads a file as a medium of `kind`; `frames` selects the frames of a video.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn open(path: &Path, kind: MediaKind, frames: FrameSelection) -> Result<Self, MediaError> {
        Ok(match kind {
            MediaKind::Image => Self::Image(load_image(path)?),
            MediaKind::Video => {
                let video = load_video(path, frames)?;
                Self::Video {
                    frames: video.frames,
                    frames_per_second: video.frames_per_second,
                }
            }
            MediaKind::Audio => {
                let audio = load_audio(path)?;
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
