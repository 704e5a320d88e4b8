//! Media of any kind from files and other sources.

use std::path::Path;
use std::time::Duration;

use edge_lmm_models::media::MediaKind;
use edge_lmm_ops::stage;

use super::decoding::Decoding;
use super::error::MediaError;
use super::frames::{FrameSelection, Video, VideoOptions};
use super::source::Source;
use super::video::Decoded;
use crate::media::medium::Media;

impl From<Video> for Media {
    fn from(video: Video) -> Self {
        let times = video.times();
        Self::video(video.frames, times)
    }
}

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
            MediaKind::Video => source.video(options)?.into(),
            MediaKind::Audio => {
                let audio = source.audio()?;
                Self::audio(audio.samples, audio.sample_rate)
            }
        })
    }

    /// Decodes a video on a thread (stage `media`), so that a session encodes its first frames
    /// before the last ones are decoded. Returns at once if the choice of frames is known from the
    /// file: all, or a number of evenly spaced ones. Otherwise, and if frames may differ in size, it
    /// reads the video as [`Self::read`] does.
    ///
    /// # Errors
    /// As [`Self::read`] for what is found before frames are decoded. What is found later is an
    /// error of [`Self::finish`], and of requests with the video.
    pub fn decode(source: &Source, options: impl Into<VideoOptions>) -> Result<Self, MediaError> {
        Ok(match source.decode_video(options.into())? {
            Decoded::Whole(video) => video.into(),
            Decoded::Later(decoding) => Self::decoding(decoding),
        })
    }

    /// Waits until a video that is [decoded on a thread](Self::decode) is complete.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn finish(&self) -> Result<(), MediaError> {
        self.finish_after(Duration::ZERO)
    }

    /// Waits like [`Self::finish`], after a wait of `waited` for single frames.
    pub(crate) fn finish_after(&self, waited: Duration) -> Result<(), MediaError> {
        self.as_decoding()
            .map_or(Ok(()), |decoding| decoding.finish(waited))
    }

    /// Returns the error of a video that is decoded on a thread, if it is known.
    pub(crate) fn failure(&self) -> Option<MediaError> {
        self.as_decoding().and_then(Decoding::failure)
    }
}
