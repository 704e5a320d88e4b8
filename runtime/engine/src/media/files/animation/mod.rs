//! Animated GIF, PNG and WebP: number and timing of frames from the container, and decoding of
//! selected frames.
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
use super::frames::{FrameSelection, Picker, Video};
use super::truncation;

/// Number and duration of an animation's frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Animation {
    /// Number of complete frames.
    pub frames: usize,
    /// Total duration of the frames.
    pub seconds: f64,
}

/// Default duration of a frame in seconds; viewers agree on it.
pub(super) const DEFAULT_DELAY: f64 = 0.1;

impl Animation {
    /// Scans a file; `None` if it is not an animation.
    pub fn of(format: Format, bytes: &[u8]) -> Option<Self> {
        let delays = match format {
            Format::Gif => gif::delays(bytes),
            Format::Png => png::delays(bytes),
            Format::WebP => webp::delays(bytes),
            _ => return None,
        };
        let shown = |&delay: &f64| if delay > 0.0 { delay } else { DEFAULT_DELAY };
        (!delays.is_empty()).then(|| Self {
            frames: delays.len(),
            seconds: delays.iter().map(shown).sum(),
        })
    }

    /// Decodes the selected frames of the file that was scanned.
    pub fn decode(
        self,
        format: Format,
        bytes: &[u8],
        selection: FrameSelection,
    ) -> Result<Video, MediaError> {
        let mut picker = Picker::new(selection, self.frames);
        decode(format, bytes, &mut picker)?;
        let rate = self.frames as f64 / self.seconds;
        picker.finish(format.name(), rate as f32)
    }
}

/// Decodes the first frame of a GIF or WebP.
pub(super) fn first_frame(format: Format, bytes: &[u8]) -> Result<RgbImage, MediaError> {
    let mut picker = Picker::new(FrameSelection::Uniform(1), 1);
    decode(format, bytes, &mut picker)?;
    let mut video = picker.finish(format.name(), 1.0)?;
    Ok(video.frames.swap_remove(0))
}

fn decode(format: Format, bytes: &[u8], picker: &mut Picker) -> Result<(), MediaError> {
    truncation::check(format, bytes)?;
    match format {
        Format::Gif => gif::decode(bytes, picker),
        Format::Png => png::decode(bytes, picker),
        _ => webp::decode(bytes, picker),
    }
}
