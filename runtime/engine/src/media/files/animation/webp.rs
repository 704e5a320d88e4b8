//! Animated WebP ("WebP Container Specification"), composed as in libwebp (`anim_decode.c`).
//!
//! Each frame is decoded as a separate still image. The background color of the file is ignored: a
//! disposed area becomes transparent black.

use edge_lmm_models::preprocess::RgbImage;
use image::{DynamicImage, ImageFormat};

use super::Decoder;
use super::canvas::{Canvas, Rect, check_size};
use crate::media::files::error::MediaError;
use crate::media::files::format::Format;
use crate::media::files::pieces::{Pieces, riff_chunk};
use crate::media::files::pixels::decode_pixels;
use crate::media::files::shared::Shared;

/// Bytes of an `ANMF` chunk before its image chunks.
const FRAME_HEADER: usize = 16;

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("WebP", message)
}

/// Returns the durations of the frames in seconds: one `ANMF` chunk per frame, with 24 bits of
/// milliseconds at offset 12.
pub fn delays(bytes: &[u8]) -> Vec<f64> {
    let delay = |data: &[u8]| f64::from(triple(data, 12)) / 1000.0;
    frames(bytes).map(delay).collect()
}

/// Iterates over the contents of the `ANMF` chunks.
fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut pieces = Pieces(bytes.get(12..).unwrap_or_default());
    std::iter::from_fn(move || next_frame(&mut pieces))
}

/// Takes the chunks up to the next `ANMF` chunk and returns its content.
fn next_frame<'a>(pieces: &mut Pieces<'a>) -> Option<&'a [u8]> {
    loop {
        match riff_chunk(pieces)? {
            (b"ANMF", data) if data.len() >= FRAME_HEADER => return Some(data),
            _ => {}
        }
    }
}

/// Reads a little-endian integer of three bytes at `offset`, or 0 beyond the end.
fn triple(data: &[u8], offset: usize) -> u32 {
    match data.get(offset..) {
        Some(&[a, b, c, ..]) => u32::from_le_bytes([a, b, c, 0]),
        _ => 0,
    }
}

/// A decoded frame.
struct Frame {
    rect: Rect,
    pixels: Vec<[u8; 4]>,
    has_alpha: bool,
    blends: bool,
    is_disposed: bool,
}

/// Decoder of an animated WebP.
pub(super) struct WebPDecoder {
    bytes: Shared,
    /// Position of the chunk after the current frame.
    position: usize,
    canvas: Canvas,
    previous: Option<Previous>,
}

impl WebPDecoder {
    pub fn open(bytes: &Shared) -> Result<Self, MediaError> {
        const FILE_HEADER: usize = 12;
        let canvas_size = riff_chunk(&mut Pieces(bytes.get(FILE_HEADER..).unwrap_or_default()));
        let Some((b"VP8X", header @ [_, _, _, _, _, _, _, _, _, _, ..])) = canvas_size else {
            return Err(damaged("an animation without a VP8X chunk"));
        };
        let (width, height) = (
            triple(header, 4) as usize + 1,
            triple(header, 7) as usize + 1,
        );
        check_size(width, height)?;
        Ok(Self {
            bytes: bytes.clone(),
            position: FILE_HEADER,
            canvas: Canvas::new(width, height, [0; 4]),
            previous: None,
        })
    }
}

impl Decoder for WebPDecoder {
    fn size(&self) -> (usize, usize) {
        self.canvas.size()
    }

    fn advance(&mut self) -> Result<bool, MediaError> {
        let mut pieces = Pieces(&self.bytes[self.position..]);
        let Some(data) = next_frame(&mut pieces) else {
            return Ok(false);
        };
        self.position = self.bytes.len() - pieces.0.len();
        let (width, height) = self.canvas.size();
        let whole = Rect {
            width,
            height,
            ..Rect::default()
        };
        let frame = Frame::decode(data, whole)?;
        if let Some(previous) = self.previous.filter(|previous| previous.is_disposed) {
            self.canvas.fill(previous.rect, [0; 4]);
        }
        let previous = self.previous;
        let is_key = previous.is_none_or(|previous| previous.is_followed_by_key(&frame, whole));
        if is_key {
            self.canvas.fill(whole, [0; 4]);
        }
        frame.draw(&mut self.canvas, previous.filter(|_| !is_key));
        self.previous = Some(Previous {
            rect: frame.rect,
            is_disposed: frame.is_disposed,
            is_key,
        });
        Ok(true)
    }

    fn image(&self) -> Result<RgbImage, MediaError> {
        self.canvas.rgb()
    }
}

/// Properties of the previous frame.
#[derive(Clone, Copy)]
struct Previous {
    rect: Rect,
    is_disposed: bool,
    is_key: bool,
}

impl Previous {
    /// Returns `true` if the next frame, `frame`, does not depend on earlier frames.
    fn is_followed_by_key(&self, frame: &Frame, whole: Rect) -> bool {
        let covers = (!frame.has_alpha || !frame.blends) && frame.rect == whole;
        covers || self.is_disposed && (self.rect == whole || self.is_key)
    }
}

impl Frame {
    fn decode(data: &[u8], whole: Rect) -> Result<Self, MediaError> {
        let rect = Rect {
            x: triple(data, 0) as usize * 2,
            y: triple(data, 3) as usize * 2,
            width: triple(data, 6) as usize + 1,
            height: triple(data, 9) as usize + 1,
        };
        if rect.x + rect.width > whole.width || rect.y + rect.height > whole.height {
            return Err(damaged("a frame reaches beyond the canvas"));
        }
        let image = decode_pixels(Format::WebP, ImageFormat::WebP, &still(data, rect))?;
        if (image.width() as usize, image.height() as usize) != (rect.width, rect.height) {
            return Err(damaged(format!(
                "a frame is {}x{} pixels, its header says {}x{}",
                image.width(),
                image.height(),
                rect.width,
                rect.height
            )));
        }
        let has_alpha = matches!(image, DynamicImage::ImageRgba8(_));
        Ok(Self {
            rect,
            pixels: image.into_rgba8().into_raw().as_chunks().0.to_vec(),
            has_alpha,
            blends: data[15] & 2 == 0,
            is_disposed: data[15] & 1 != 0,
        })
    }

    /// Draws the frame. It is blended unless it is a key frame after `previous`; the area of a
    /// disposed frame has nothing to blend with.
    fn draw(&self, canvas: &mut Canvas, previous: Option<Previous>) {
        let Some(previous) = previous.filter(|_| self.blends) else {
            return canvas.draw(self.rect, &self.pixels, |new, _| new);
        };
        canvas.map(self.rect, |x, y, old| {
            let new = self.pixels[(y - self.rect.y) * self.rect.width + x - self.rect.x];
            if previous.is_disposed && previous.rect.contains(x, y) {
                new
            } else {
                over(new, old)
            }
        });
    }
}

/// Wraps the image of an `ANMF` chunk in a separate file.
fn still(data: &[u8], rect: Rect) -> Vec<u8> {
    let image = &data[FRAME_HEADER..];
    let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
    if image.starts_with(b"ALPH") {
        const ALPHA: u32 = 0x10;
        file.extend(b"VP8X\x0a\0\0\0");
        file.extend(ALPHA.to_le_bytes());
        for size in [rect.width, rect.height] {
            file.extend_from_slice(&(size as u32 - 1).to_le_bytes()[..3]);
        }
    }
    file.extend(image);
    let len = (file.len() - 8) as u32;
    file[4..8].copy_from_slice(&len.to_le_bytes());
    file
}

/// Blends as `BlendPixelNonPremult` of libwebp.
fn over(new: [u8; 4], old: [u8; 4]) -> [u8; 4] {
    match new[3] {
        0 => old,
        255 => new,
        alpha => {
            let alpha = u32::from(alpha);
            let beneath = (u32::from(old[3]) * (256 - alpha)) >> 8;
            let scale = (1 << 24) / (alpha + beneath);
            let mix = |i: usize| {
                let sum = u32::from(new[i]) * alpha + u32::from(old[i]) * beneath;
                ((sum * scale) >> 24) as u8
            };
            [mix(0), mix(1), mix(2), (alpha + beneath) as u8]
        }
    }
}
