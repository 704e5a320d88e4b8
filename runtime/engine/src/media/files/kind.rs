//! What a file is.

use std::path::Path;

use super::error::MediaError;
use super::source::Source;

pub use edge_lmm_models::media::MediaKind;

/// What a file or folder is, by its content: a still image, a video (an animation, a frame strip or
/// a folder among them) or a sound. Unsupported formats that are known have a kind as well; reading
/// them gives an error with advice.
///
/// # Errors
/// If the file cannot be opened or is none of these.
pub fn kind(path: &Path) -> Result<MediaKind, MediaError> {
    Source::file(path)?.kind()
}
