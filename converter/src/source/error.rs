//! Errors of reading a checkpoint.

use std::ops::Range;
use std::path::PathBuf;

/// The error returned when a checkpoint cannot be read. Messages name the file or tensor, what was
/// found, what was expected, and the remedy where it is not obvious.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file cannot be opened, mapped or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The path does not lead to a checkpoint.
    #[error("{} is not a checkpoint: found {found}; expected {expected}", path.display())]
    NotACheckpoint {
        /// The path as given.
        path: PathBuf,
        /// A description of what was found.
        found: String,
        /// A description of what was expected.
        expected: String,
    },
    /// A file contains only the remains of a failed or partial download.
    #[error("{} was not downloaded: found {found}", path.display())]
    NotDownloaded {
        /// The file.
        path: PathBuf,
        /// A description of the content, with advice.
        found: &'static str,
    },
    /// A required file is missing.
    #[error("{} is missing: {needed_for}", path.display())]
    MissingFile {
        /// Its expected path.
        path: PathBuf,
        /// Why it is needed and what to do.
        needed_for: String,
    },
    /// A file violates its format.
    #[error("{file}: found {found}; expected {expected}")]
    Malformed {
        /// The file, with the position if known.
        file: String,
        /// The content found.
        found: String,
        /// The expected content, with advice.
        expected: String,
    },
    /// The file is valid, but this kind of content is not supported.
    #[error("{file}: {what} {found} is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The kind of content, for example `architecture`.
        what: String,
        /// The value found.
        found: String,
        /// The supported values.
        supported: String,
    },
    /// The element type of a tensor is not supported.
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
        /// The supported types.
        supported: String,
    },
    /// A tensor is missing from the checkpoint.
    #[error("{file}: tensor {tensor} is missing: {needed_for}")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The reason it is needed, or similar names that exist.
        needed_for: String,
    },
    /// The requested rows lie outside a tensor.
    #[error("tensor {tensor} has {rows} rows; rows {}..{} were requested", range.start, range.end)]
    Rows {
        /// The tensor's name.
        tensor: String,
        /// Its number of rows.
        rows: usize,
        /// The requested rows.
        range: Range<usize>,
    },
    /// The tokenizer has more tokens than the model has embeddings.
    #[error(
        "{file}: the tokenizer's largest token id is {largest} but the model's vocab_size is {vocab_size}; \
         ids must be below vocab_size, so the tokenizer and config.json do not belong together"
    )]
    Vocabulary {
        /// The source of the tokenizer.
        file: String,
        /// Its largest id.
        largest: u32,
        /// `vocab_size` of the config.
        vocab_size: u64,
    },
}

/// The result type of this module.
pub(super) type Result<T, E = SourceError> = std::result::Result<T, E>;

/// Builds a [`SourceError::Malformed`].
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

/// Lists the first few of `names` for a message: `a, b, c and 12 more`.
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
