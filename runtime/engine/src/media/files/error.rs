//! Errors of media decoding.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm_models::preprocess::{PreprocessError, RgbImage};

/// The error returned when an image, video or audio file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// An error with the file that caused it.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        error: Box<MediaError>,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// A pipe or device instead of a regular file.
    #[error("not a file: found {0}, expected a regular file")]
    NotAFile(&'static str),
    /// The content has another kind than expected.
    #[error("not {} {wanted}: found {found}, expected {expected}", article(wanted))]
    WrongKind {
        /// Image, video or audio file.
        wanted: &'static str,
        /// The content found.
        found: String,
        /// The supported formats.
        expected: &'static str,
    },
    /// A known format that is not supported.
    #[error("unsupported file format: {format}; {advice}")]
    Unsupported {
        /// The format.
        format: String,
        /// The remedy.
        advice: String,
    },
    /// The file ends too early.
    #[error("the {format} file is truncated: {message}")]
    Truncated {
        /// The format.
        format: &'static str,
        /// The missing part.
        message: String,
    },
    /// The file violates its format.
    #[error("damaged {format}: {message}")]
    Damaged {
        /// The format.
        format: &'static str,
        /// The violation.
        message: String,
    },
    /// The decoder panicked with this message.
    #[error("the decoder failed on this file, which is probably damaged ({0})")]
    Decoder(String),
    /// The file exceeds the size limit.
    #[error(
        "the file is larger than {limit} bytes, the limit for {} {wanted}",
        article(wanted)
    )]
    FileSize {
        /// Maximum bytes.
        limit: u64,
        /// Image, video or audio file.
        wanted: &'static str,
    },
    /// Decoding needs more memory than allowed.
    #[error(
        "decoding needs {} of memory, at most {} may be used (half of the available memory); scale \
         it down, shorten it or use fewer frames",
        mebibytes(*needed), mebibytes(*limit)
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Maximum bytes.
        limit: u64,
    },
    /// More frames than fit into memory.
    #[error(
        "{frames} frames of {width}x{height} pixels are too many: at most {MAX_FRAMES} frames and \
         {} pixels are supported; use fewer frames or scale the video down",
        RgbImage::MAX_PIXELS
    )]
    TooManyFrames {
        /// Frames requested.
        frames: usize,
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Audio that exceeds the memory limit.
    #[error("the audio is too long: at most {limit} samples are supported; shorten it")]
    TooLong {
        /// Maximum samples per channel.
        limit: usize,
    },
    /// The error of a video that was decoded while it was used.
    #[error(transparent)]
    Decoding(Arc<MediaError>),
    /// An image that exceeds a limit.
    #[error(transparent)]
    Image(#[from] PreprocessError),
}

/// Maximum frames of a video. Models use far fewer; each frame costs memory however small it is.
pub(super) const MAX_FRAMES: usize = 4096;

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl MediaError {
    /// Adds the name of the file to the error.
    pub(crate) fn of(self, path: &Path) -> Self {
        match self {
            Self::File { .. } => self,
            error => Self::File {
                path: path.to_owned(),
                error: Box::new(error),
            },
        }
    }

    pub(crate) fn damaged(format: &'static str, message: impl ToString) -> Self {
        Self::Damaged {
            format,
            message: message.to_string(),
        }
    }

    pub(super) fn truncated(format: &'static str, message: impl ToString) -> Self {
        Self::Truncated {
            format,
            message: message.to_string(),
        }
    }

    /// Converts the error of a decoder, which may have reached the end of the file.
    pub(super) fn decoding(format: &'static str, error: &(dyn Error + 'static)) -> Self {
        if ends_too_early(error) {
            Self::truncated(format, "its data ends too early")
        } else {
            Self::damaged(format, error)
        }
    }
}

fn ends_too_early(error: &(dyn Error + 'static)) -> bool {
    let io = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    let gif = matches!(
        error.downcast_ref::<gif::DecodingError>(),
        Some(gif::DecodingError::UnexpectedEof)
    );
    io || gif || error.source().is_some_and(ends_too_early)
}
