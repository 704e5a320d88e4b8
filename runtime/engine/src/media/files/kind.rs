//! Detection of the kind of a file.

use std::path::Path;

use super::animation::Animation;
use super::error::MediaError;
use super::format::{Format, unknown};
use super::mp4;
use super::source::{Content, Source};
use super::strip::strip_frames;

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
        self.read(|| match self.content() {
            Content::Folder => Ok(MediaKind::Video),
            Content::Whole(Format::Png, _) if strip_frames(self.path()).is_some() => {
                Ok(MediaKind::Video)
            }
            content @ (Content::Disk(Format::Mp4, _) | Content::Whole(Format::Mp4, _)) => {
                let is_sound = content
                    .bytes()
                    .is_some_and(|(_, bytes)| mp4::is_sound(&bytes));
                Ok(if is_sound {
                    MediaKind::Audio
                } else {
                    MediaKind::Video
                })
            }
            Content::Whole(format, bytes) => match Animation::of(*format, bytes) {
                Some(animation) if animation.frames() > 1 => Ok(MediaKind::Video),
                _ => Ok(format.kind()),
            },
            Content::Disk(format, _)
            | Content::Stream(format, _)
            | Content::Unsupported(format) => Ok(format.kind()),
            Content::Unknown(head) => Err(unknown(head, "image, video or audio file")),
        })
    }
}
