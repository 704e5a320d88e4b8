//! Videos as streams of frames.

use std::path::PathBuf;

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;
use super::guard::guarded;

/// A frame of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Its pixels.
    pub image: RgbImage,
    /// Seconds since the first frame.
    pub time: f64,
}

/// The frames of a video in order of time, decoded one by one.
///
/// [`Source::frames`](super::Source::frames) opens it. It holds a frame or two at a time, whatever
/// the length of the video.
pub struct FrameStream {
    path: PathBuf,
    frames: Box<dyn Frames>,
}

impl FrameStream {
    pub(super) fn new(path: PathBuf, frames: Box<dyn Frames>) -> Self {
        Self { path, frames }
    }

    /// Decodes the next frame; `None` at the end of the video.
    ///
    /// # Errors
    /// If the video is truncated or damaged, or exceeds the memory limit.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, MediaError> {
        let frames = &mut self.frames;
        let frame = guarded(|| match frames.advance()? {
            None => Ok(None),
            Some(time) => {
                let image = frames.image()?;
                Ok(Some(Frame { image, time }))
            }
        });
        frame.map_err(|error| error.of(&self.path))
    }

    /// Skips the next frame and returns its time; `None` at the end of the video. This takes less
    /// time than decoding where frames are independent of each other.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    pub fn skip_frame(&mut self) -> Result<Option<f64>, MediaError> {
        let frames = &mut self.frames;
        guarded(|| frames.advance()).map_err(|error| error.of(&self.path))
    }

    /// Returns the number of frames; `None` if the video does not announce it.
    pub fn frame_count(&self) -> Option<usize> {
        self.frames.outline().length.map(|length| length.frames)
    }
}

/// A decoder of the frames of a video.
pub(super) trait Frames: Send {
    /// Returns what is known before the frames are decoded.
    fn outline(&self) -> Outline;

    /// Leaves out the frames that depend on others, unless fewer than `least` are left. It is called
    /// before the first frame; decoders whose frames are independent, or that do not know, change
    /// nothing.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn only_independent(&mut self, _least: usize) -> Result<(), MediaError> {
        Ok(())
    }

    /// Moves to the next frame and returns its time in seconds since the first one; `None` at the
    /// end.
    fn advance(&mut self) -> Result<Option<f64>, MediaError>;

    /// Returns the current frame, which must exist.
    fn image(&mut self) -> Result<RgbImage, MediaError>;

    /// Returns the time in seconds at which the current frame ends.
    fn end(&self) -> f64;
}

/// Properties of a video that are known before its frames are decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outline {
    /// Format, in messages.
    pub format: &'static str,
    /// Width and height of all frames, unless they may differ.
    pub size: Option<(usize, usize)>,
    /// `None` for streams.
    pub length: Option<Length>,
}

/// Length of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Length {
    /// Number of frames.
    pub frames: usize,
    /// Time from the start of the first frame to the end of the last one.
    pub seconds: f64,
}
