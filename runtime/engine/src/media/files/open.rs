//! Media of any kind from files and other sources.

use std::path::Path;

use edge_lmm_models::media::MediaKind;
use edge_lmm_ops::stage;

use super::error::MediaError;
use super::frames::{FrameSelection, VideoOptions};
use super::source::Source;
use crate::media::medium::Media;

impl Media {
    /// Reads an image, a video or a sound, whichever the file holds (stage `media`).
    ///
    /// # Errors
    /// If it is none of these, is damaged, or needs more memory than may be used.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MediaError> {
        let _stage = stage::top("media");
        let source = Source::file(path.as_ref())?;
        Self::read(&source, source.kind()?, FrameSelection::All)
    }

    /// Decodes a source as a medium of `kind`; `options` selects the frames of a video. The sound
    /// track of a video is a medium of its own: read it as audio.
    ///
    /// # Errors
    /// If the source holds something else, is damaged, or needs more memory than may be used.
    pub fn read(
        source: &Source,
        kind: MediaKind,
        options: impl Into<VideoOptions>,
    ) -> Result<Self, MediaError> {
        Ok(match kind {
            MediaKind::Image => Self::image(source.image()?),
            MediaKind::Video => {
                let video = source.video(options)?;
                Self::video(video.frames, video.frames_per_second)
            }
            MediaKind::Audio => {
                let audio = source.audio()?;
                Self::audio(audio.samples, audio.sample_rate)
            }
        })
    }
}
