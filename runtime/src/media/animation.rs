//! Animated GIF, PNG and WebP: a look at the container for the number and timing of frames, and
//! decoding of the frames that are wanted.

use std::io::Cursor;

use edge_lmm_models::preprocess::RgbImage;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frames, ImageDecoder};

use super::error::MediaError;
use super::image::{check_size, limits, to_rgb};
use super::kind::Format;
use super::pieces::{Pieces, riff_chunk};
use super::video::{FrameSelection, Picker, Video};

/// What the container of an animation says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Animation {
    /// Complete frames.
    pub frames: usize,
    /// How long they are shown together.
    pub seconds: f64,
}

/// Seconds that a frame is shown if the file does not say; viewers agree on them.
const DEFAULT_DELAY: f64 = 0.1;

impl Animation {
    /// Looks through a file; `None` if it is no animation.
    pub fn of(format: Format, bytes: &[u8]) -> Option<Self> {
        match format {
            Format::Gif => scan_gif(bytes),
            Format::Png => scan_png(bytes),
            Format::WebP => scan_webp(bytes),
            _ => None,
        }
    }

    fn of_delays(delays: &[f64]) -> Option<Self> {
        let shown = |&delay: &f64| if delay > 0.0 { delay } else { DEFAULT_DELAY };
        (!delays.is_empty()).then(|| Self {
            frames: delays.len(),
            seconds: delays.iter().map(shown).sum(),
        })
    }
}

/// GIF89a: blocks after the screen descriptor; the delay stands in an extension before the frame.
fn scan_gif(bytes: &[u8]) -> Option<Animation> {
    let mut pieces = Pieces(bytes);
    let screen = pieces.take(13)?;
    pieces.take(color_table_len(screen[10]))?;
    let mut delays = Vec::new();
    // A file that ends too early has the frames up to there.
    while gif_block(&mut pieces, &mut delays).is_some() {}
    delays.pop();
    Animation::of_delays(&delays)
}

/// Goes past one block. The last of `delays` belongs to the frame that is yet to come.
fn gif_block(pieces: &mut Pieces<'_>, delays: &mut Vec<f64>) -> Option<()> {
    const EXTENSION: u8 = 0x21;
    const GRAPHIC_CONTROL: u8 = 0xf9;
    const FRAME: u8 = 0x2c;
    if delays.is_empty() {
        delays.push(0.0);
    }
    match pieces.byte()? {
        EXTENSION => {
            let label = pieces.byte()?;
            if let (GRAPHIC_CONTROL, &[4, _, low, high, ..]) = (label, pieces.0) {
                let delay = f64::from(u16::from_le_bytes([low, high])) / 100.0;
                // As in browsers, faster than 50 frames per second means unspecified.
                *delays.last_mut()? = if delay < 0.02 { 0.0 } else { delay };
            }
            skip_gif_data(pieces)
        }
        FRAME => {
            let descriptor = pieces.take(9)?;
            pieces.take(color_table_len(descriptor[8]) + 1)?;
            skip_gif_data(pieces)?;
            delays.push(0.0);
            Some(())
        }
        _ => None,
    }
}

/// Bytes of a color table, from the flags that announce it.
fn color_table_len(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

fn skip_gif_data(pieces: &mut Pieces<'_>) -> Option<()> {
    loop {
        match pieces.byte()? {
            0 => return Some(()),
            len => pieces.take(usize::from(len))?,
        };
    }
}

/// APNG: an `acTL` chunk before the picture data, one `fcTL` chunk per frame.
fn scan_png(bytes: &[u8]) -> Option<Animation> {
    let mut pieces = Pieces(bytes.get(8..)?);
    let (mut animated, mut delays) = (false, Vec::new());
    while let Some(chunk) = png_chunk(&mut pieces) {
        match chunk {
            (b"acTL", _) => animated = true,
            (b"IDAT", _) if !animated => return None,
            (b"fcTL", &[_, .., a, b, c, d, _, _]) => {
                let denominator = match u16::from_be_bytes([c, d]) {
                    0 => 100,
                    denominator => denominator,
                };
                delays.push(f64::from(u16::from_be_bytes([a, b])) / f64::from(denominator));
            }
            _ => {}
        }
    }
    Animation::of_delays(&delays).filter(|_| animated)
}

fn png_chunk<'a>(pieces: &mut Pieces<'a>) -> Option<(&'a [u8; 4], &'a [u8])> {
    let len = u32::from_be_bytes(pieces.take(4)?.try_into().ok()?);
    let name = pieces.take(4)?.try_into().ok()?;
    let data = pieces.take(usize::try_from(len).ok()?)?;
    pieces.take(4)?;
    Some((name, data))
}

/// WebP: one `ANMF` chunk per frame; its delay is 24 bits of milliseconds at offset 12.
fn scan_webp(bytes: &[u8]) -> Option<Animation> {
    let mut pieces = Pieces(bytes.get(12..)?);
    let mut delays = Vec::new();
    while let Some((name, data)) = riff_chunk(&mut pieces) {
        if let (b"ANMF", Some(&[a, b, c])) = (name, data.get(12..15)) {
            delays.push(f64::from(u32::from_le_bytes([a, b, c, 0])) / 1000.0);
        }
    }
    Animation::of_delays(&delays)
}

/// Decodes the wanted frames; a still picture is a video of one frame.
pub(super) fn load(
    format: Format,
    bytes: &[u8],
    selection: FrameSelection,
) -> Result<Video, MediaError> {
    let Some(animation) = Animation::of(format, bytes) else {
        let frames = vec![super::image::decode_image(bytes)?];
        return Ok(Video {
            frames,
            frames_per_second: (1.0 / DEFAULT_DELAY) as f32,
        });
    };
    let damaged = |error| MediaError::damaged(format.name(), error);
    let reader = Cursor::new(bytes);
    let pictures = match format {
        Format::Gif => frames(GifDecoder::new(reader).map_err(damaged)?, format, Ok),
        Format::WebP => frames(WebPDecoder::new(reader).map_err(damaged)?, format, |d| {
            Ok(d)
        }),
        _ => frames(
            PngDecoder::with_limits(reader, limits(RgbImage::MAX_PIXELS)).map_err(damaged)?,
            format,
            |decoder| decoder.apng().map_err(damaged),
        ),
    }?;
    let mut picker = Picker::new(selection, animation.frames);
    for picture in pictures.take(animation.frames) {
        if picker.is_done() {
            break;
        }
        let picture = picture.map_err(damaged)?;
        picker.offer(|| to_rgb(DynamicImage::ImageRgba8(picture.into_buffer())))?;
    }
    let rate = animation.frames as f64 / animation.seconds;
    picker.finish(format.name(), rate as f32)
}

/// The frames of an animation whose size has been checked.
fn frames<'a, D: ImageDecoder, A: AnimationDecoder<'a>>(
    mut decoder: D,
    format: Format,
    animate: impl Fn(D) -> Result<A, MediaError>,
) -> Result<Frames<'a>, MediaError> {
    let (width, height) = check_size(&decoder)?;
    decoder
        .set_limits(limits(width * height))
        .map_err(|error| MediaError::damaged(format.name(), error))?;
    Ok(animate(decoder)?.into_frames())
}
