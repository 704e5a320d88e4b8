//! Why a file cannot be read.

use std::io;
use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::{PreprocessError, RgbImage};

/// Why a picture, video or sound cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// Something is wrong with that file.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<MediaError>,
    },
    /// The file cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// The content is not what was asked for.
    #[error("not a {wanted}: found {found}, expected {expected}")]
    WrongKind {
        /// Picture, video or sound.
        wanted: &'static str,
        /// What the file holds.
        found: String,
        /// Formats that can be read.
        expected: &'static str,
    },
    /// A format that is known but cannot be read.
    #[error("{format} is not supported; {advice}")]
    Unsupported {
        /// The format.
        format: String,
        /// What to do.
        advice: String,
    },
    /// The file contradicts its own format, or ends too early.
    #[error("damaged {format}: {message}")]
    Damaged {
        /// The format.
        format: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A file of so many bytes is not read.
    #[error("the file has more than {limit} bytes, which is too large for a {wanted}")]
    FileSize {
        /// Most bytes.
        limit: u64,
        /// Picture, video or sound.
        wanted: &'static str,
    },
    /// More frames than fit into memory.
    #[error(
        "{frames} frames of {width}x{height} pixels are too many: at most {} pixels can be held; \
         take fewer frames (--frames N) or scale the video down",
        RgbImage::MAX_PIXELS
    )]
    TooManyFrames {
        /// Frames asked for.
        frames: usize,
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A longer sound than fits into memory.
    #[error("the sound is too long: at most {limit} samples can be held; cut it")]
    TooLong {
        /// Most samples of one channel.
        limit: usize,
    },
    /// A picture that cannot be held.
    #[error(transparent)]
    Picture(#[from] PreprocessError),
}

impl MediaError {
    /// The error with the file's name.
    pub(super) fn of(self, path: &Path) -> Self {
        match self {
            Self::File { .. } => self,
            error => Self::File {
                path: path.to_owned(),
                error: Box::new(error),
            },
        }
    }

    pub(super) fn damaged(format: &'static str, message: impl ToString) -> Self {
        Self::Damaged {
            format,
            message: message.to_string(),
        }
    }
}
