//! Detection of the kind of a file.

use std::path::Path;

use super::error::MediaError;
use super::source::Source;

pub use edge_lmm_models::media::MediaKind;

/// Detects the kind of a file or folder by its content: a still image, a video (including
/// animations, frame strips and folders) or audio. Known formats that are not supported have a kind
/// too; reading them gives an error with advice.
///
/// # Errors
/// If the file cannot be opened or has none of these kinds.
pub fn kind(path: &Path) -> Result<MediaKind, MediaError> {
    Source::file(path)?.kind()
}
