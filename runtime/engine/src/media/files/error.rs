//! Why a file cannot be read.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::{PreprocessError, RgbImage};

/// Why an image, video or sound cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// An error of that file.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        error: Box<MediaError>,
    },
    /// The file cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// A pipe or device where only files are read.
    #[error("not a file: found {0}, expected a regular file")]
    NotAFile(&'static str),
    /// The content is not what was asked for.
    #[error("not {} {wanted}: found {found}, expected {expected}", article(wanted))]
    WrongKind {
        /// Image, video or sound.
        wanted: &'static str,
        /// What the file holds.
        found: String,
        /// Formats that can be read.
        expected: &'static str,
    },
    /// A format that is known but cannot be read.
    #[error("unsupported file format: {format}; {advice}")]
    Unsupported {
        /// The format.
        format: String,
        /// What to do.
        advice: String,
    },
    /// The file ends too early.
    #[error("the {format} file is truncated: {message}")]
    Truncated {
        /// The format.
        format: &'static str,
        /// What is missing.
        message: String,
    },
    /// The file contradicts its own format.
    #[error("damaged {format}: {message}")]
    Damaged {
        /// The format.
        format: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The decoder panicked, with that message.
    #[error("the decoder failed on this file, which is probably damaged ({0})")]
    Decoder(String),
    /// A file of so many bytes is not read.
    #[error(
        "the file has more than {limit} bytes, too many for {} {wanted}",
        article(wanted)
    )]
    FileSize {
        /// Most bytes.
        limit: u64,
        /// Image, video or sound.
        wanted: &'static str,
    },
    /// Decoding needs more memory than may be used.
    #[error(
        "decoding needs {} of memory, at most {} may be used (half of what is available); scale \
         it down, cut it, or take fewer frames",
        mebibytes(*needed), mebibytes(*limit)
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Most bytes.
        limit: u64,
    },
    /// More frames than fit into memory.
    #[error(
        "{frames} frames of {width}x{height} pixels are too many: at most {MAX_FRAMES} frames and \
         {} pixels can be held; take fewer frames (--frames N) or scale the video down",
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
    /// An image that cannot be held.
    #[error(transparent)]
    Image(#[from] PreprocessError),
}

/// Most frames of a video. Models take far fewer; each frame costs memory however small it is.
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

    pub(super) fn truncated(format: &'static str, message: impl ToString) -> Self {
        Self::Truncated {
            format,
            message: message.to_string(),
        }
    }

    /// The error of a decoder, which may be the end of the file.
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
