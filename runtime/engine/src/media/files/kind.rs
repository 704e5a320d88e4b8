//! Detection of the kind of a file.

use std::path::Path;

use super::animation::Animation;
use super::error::MediaError;
use super::format::{Format, unknown};
use super::source::{Content, Source};
use super::video::strip_frames;

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

impl Source {
    /// Detects the kind: see [`kind()`].
    ///
    /// # Errors
    /// If it is not an image, video or audio file.
    pub fn kind(&self) -> Result<MediaKind, MediaError> {
        self.read(|path, content| match content {
            Content::Folder | Content::Y4m(_) => Ok(MediaKind::Video),
            Content::Whole(Format::Png, _) if strip_frames(path).is_some() => Ok(MediaKind::Video),
            Content::Whole(format, bytes) => match Animation::of(*format, bytes) {
                Some(animation) if animation.frames > 1 => Ok(MediaKind::Video),
                _ => Ok(format.kind()),
            },
            Content::Unsupported(format) => Ok(format.kind()),
            Content::Unknown(head) => Err(unknown(head, "image, video or audio file")),
        })
    }
}
