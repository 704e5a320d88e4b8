//! What can be wrong with a checkpoint.

use std::ops::Range;
use std::path::PathBuf;

/// Why a checkpoint cannot be read. Every message names the file or tensor, what was found, what was
/// expected, and what to do where that is not obvious.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file cannot be opened, mapped or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The given path is not something that holds a checkpoint.
    #[error("{} is not a checkpoint: found {found}; expected {expected}", path.display())]
    NotACheckpoint {
        /// The path as given.
        path: PathBuf,
        /// What lies there.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A file holds only what a failed or partial download leaves.
    #[error("{} was not downloaded: found {found}", path.display())]
    NotDownloaded {
        /// The file.
        path: PathBuf,
        /// A description of the content, with advice.
        found: &'static str,
    },
    /// A file that belongs to the checkpoint is not there.
    #[error("{} is missing: {needed_for}", path.display())]
    MissingFile {
        /// Where it should be.
        path: PathBuf,
        /// Why it is needed and what to do.
        needed_for: String,
    },
    /// A file contradicts its own format.
    #[error("{file}: found {found}; expected {expected}")]
    Malformed {
        /// The file, with the place in it where one is known.
        file: String,
        /// What is there.
        found: String,
        /// What the format asks for, and what to do.
        expected: String,
    },
    /// The format is understood, but not this kind of content.
    #[error("{file}: {what} {found} is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// What kind of thing it is, for example `architecture`.
        what: String,
        /// The value found.
        found: String,
        /// The values that can be read.
        supported: String,
    },
    /// A tensor's element type cannot be turned into f32.
    #[error(
        "{file}: tensor {tensor} is stored as {found}, which cannot be read; supported: {supported}"
    )]
    UnsupportedType {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its element type.
        found: String,
        /// The types that can be read.
        supported: String,
    },
    /// A tensor is not in the checkpoint.
    #[error("{file}: tensor {tensor} is missing: {needed_for}")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Why it is needed, or what there is instead.
        needed_for: String,
    },
    /// Rows were asked for that a tensor does not have.
    #[error("tensor {tensor} has {rows} rows; rows {}..{} were asked for", range.start, range.end)]
    Rows {
        /// The tensor's name.
        tensor: String,
        /// How many rows it has.
        rows: usize,
        /// The rows asked for.
        range: Range<usize>,
    },
    /// The tokenizer knows more tokens than the model has embeddings.
    #[error(
        "{file}: the tokenizer's largest token id is {largest} but the model's vocab_size is {vocab_size}; \
         ids must be below vocab_size, so tokenizer and config do not belong together"
    )]
    Vocabulary {
        /// Where the tokenizer comes from.
        file: String,
        /// Its largest id.
        largest: u32,
        /// `vocab_size` of the config.
        vocab_size: u64,
    },
}

/// Shorthand of this module.
pub(super) type Result<T, E = SourceError> = std::result::Result<T, E>;

/// Shorthand for [`SourceError::Malformed`].
pub(super) fn malformed(
    file: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> SourceError {
    SourceError::Malformed {
        file: file.into(),
        found: found.into(),
        expected: expected.into(),
    }
}

/// The first few of `names`, for a message: `a, b, c and 12 more`.
pub(crate) fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 3;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
