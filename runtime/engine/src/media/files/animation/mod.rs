//! Animated GIF, PNG and WebP: number and timing of frames from the container, and decoding of the
//! frames one by one.
//!
//! Frames are composed on a [`Canvas`](canvas::Canvas), by the rules of Pillow (GIF), libwebp and
//! the PNG specification.

mod canvas;
mod gif;
mod png;
mod webp;

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;
use super::format::Format;
use super::frame_stream::{Frames, Length, Outline};
use super::shared::Shared;
use super::truncation;

/// Number and duration of an animation's frames.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Animation {
    /// Duration of each complete frame in seconds, at least one.
    delays: Vec<f64>,
}

/// Default duration of a frame in seconds; viewers agree on it.
pub(super) const DEFAULT_DELAY: f64 = 0.1;

impl Animation {
    /// Scans a file; `None` if it is not an animation.
    pub fn of(format: Format, bytes: &[u8]) -> Option<Self> {
        let mut delays = match format {
            Format::Gif => gif::delays(bytes),
            Format::Png => png::delays(bytes),
            Format::WebP => webp::delays(bytes),
            _ => return None,
        };
        for delay in &mut delays {
            if *delay <= 0.0 {
                *delay = DEFAULT_DELAY;
            }
        }
        (!delays.is_empty()).then_some(Self { delays })
    }

    /// Returns the number of complete frames.
    pub fn frames(&self) -> usize {
        self.delays.len()
    }

    /// Opens the file that was scanned.
    pub fn open(self, format: Format, bytes: &Shared) -> Result<AnimationFrames, MediaError> {
        let decoder = decoder(format, bytes)?;
        Ok(AnimationFrames {
            format,
            length: Length {
                frames: self.delays.len(),
                seconds: self.delays.iter().sum(),
            },
            delays: self.delays,
            decoder,
            passed: 0,
            end: 0.0,
        })
    }
}

/// The frames of an animation.
pub(super) struct AnimationFrames {
    format: Format,
    length: Length,
    delays: Vec<f64>,
    decoder: Box<dyn Decoder>,
    /// Number of frames passed, including the current one.
    passed: usize,
    /// End of the current frame in seconds.
    end: f64,
}

impl Frames for AnimationFrames {
    fn outline(&self) -> Outline {
        Outline {
            format: self.format.name(),
            size: Some(self.decoder.size()),
            length: Some(self.length),
        }
    }

    fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        let Some(delay) = self.delays.get(self.passed) else {
            return Ok(None);
        };
        if !self.decoder.advance()? {
            return Ok(None);
        }
        let time = self.end;
        self.passed += 1;
        self.end += delay;
        Ok(Some(time))
    }

    fn image(&mut self) -> Result<RgbImage, MediaError> {
        self.decoder.image()
    }

    fn end(&self) -> f64 {
        self.end
    }
}

/// A decoder that composes the frames of an animation.
trait Decoder: Send {
    /// Returns width and height of the canvas.
    fn size(&self) -> (usize, usize);

    /// Decodes and composes the next frame; returns `false` at the end.
    fn advance(&mut self) -> Result<bool, MediaError>;

    /// Returns the current frame, which must exist.
    fn image(&self) -> Result<RgbImage, MediaError>;
}

/// Decodes the first frame of a GIF or WebP.
pub(super) fn first_frame(format: Format, bytes: &Shared) -> Result<RgbImage, MediaError> {
    let mut decoder = decoder(format, bytes)?;
    if !decoder.advance()? {
        return Err(MediaError::damaged(
            format.name(),
            "it has no complete frame",
        ));
    }
    decoder.image()
}

fn decoder(format: Format, bytes: &Shared) -> Result<Box<dyn Decoder>, MediaError> {
    truncation::check(format, bytes)?;
    Ok(match format {
        Format::Gif => Box::new(gif::GifDecoder::open(bytes)?),
        Format::Png => Box::new(png::PngDecoder::open(bytes)?),
        _ => Box::new(webp::WebPDecoder::open(bytes)?),
    })
}
