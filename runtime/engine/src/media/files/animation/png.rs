//! Animated PNG (PNG specification, third edition, "APNG").

use std::io::Cursor;

use edge_lmm_models::preprocess::RgbImage;
use png::{BlendOp, ColorType, DisposeOp, Limits, Reader, Transformations};

use super::Decoder;
use super::canvas::{Canvas, Disposal, Rect, check_size};
use crate::media::files::error::MediaError;
use crate::media::files::pieces::{Pieces, png_chunk};
use crate::media::files::pixels::MAX_METADATA;
use crate::media::files::shared::Shared;

const NAME: &str = "PNG";

/// Returns the durations of the frames in seconds: an `acTL` chunk precedes the image data, each
/// frame has an `fcTL` chunk.
pub fn delays(bytes: &[u8]) -> Vec<f64> {
    let mut pieces = Pieces(bytes.get(8..).unwrap_or_default());
    let (mut animated, mut delays) = (false, Vec::new());
    while let Some(chunk) = png_chunk(&mut pieces) {
        match chunk {
            (b"acTL", _) => animated = true,
            (b"IDAT", _) if !animated => break,
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
    if animated { delays } else { Vec::new() }
}

/// Decoder of an animated PNG.
pub(super) struct PngDecoder {
    reader: Reader<Cursor<Shared>>,
    canvas: Canvas,
    /// Disposal of the last frame, which is done before the next one is drawn.
    disposal: Disposal,
    is_first: bool,
    buffer: Vec<u8>,
}

impl PngDecoder {
    pub fn open(bytes: &Shared) -> Result<Self, MediaError> {
        let limits = Limits {
            bytes: MAX_METADATA,
        };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes.clone()), limits);
        decoder
            .set_transformations(Transformations::normalize_to_color8() | Transformations::ALPHA);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let reader = decoder.read_info();
        let mut reader = reader.map_err(|error| MediaError::decoding(NAME, &error))?;
        let (width, height) = reader.info().size();
        let (width, height) = (width as usize, height as usize);
        check_size(width, height)?;
        let mut buffer = Vec::new();
        // The default image may not be part of the animation.
        if reader.info().frame_control().is_none() {
            next_frame(&mut reader, &mut buffer)?;
        }
        Ok(Self {
            reader,
            canvas: Canvas::new(width, height, [0; 4]),
            disposal: Disposal::Keep,
            is_first: true,
            buffer,
        })
    }
}

impl Decoder for PngDecoder {
    fn size(&self) -> (usize, usize) {
        self.canvas.size()
    }

    fn advance(&mut self) -> Result<bool, MediaError> {
        let pixels = next_frame(&mut self.reader, &mut self.buffer)?;
        let Some(&control) = self.reader.info().frame_control() else {
            return Ok(false);
        };
        let canvas = &mut self.canvas;
        std::mem::replace(&mut self.disposal, Disposal::Keep).apply(canvas);
        let rect = Rect {
            x: control.x_offset as usize,
            y: control.y_offset as usize,
            width: control.width as usize,
            height: control.height as usize,
        };
        self.disposal = match control.dispose_op {
            DisposeOp::None => Disposal::Keep,
            DisposeOp::Previous if !self.is_first => Disposal::Restore(rect, canvas.copy(rect)),
            _ => Disposal::Fill(rect, [0; 4]),
        };
        match control.blend_op {
            BlendOp::Source => canvas.draw(rect, &pixels, |new, _| new),
            BlendOp::Over => canvas.draw(rect, &pixels, over),
        }
        self.is_first = false;
        Ok(true)
    }

    fn image(&self) -> Result<RgbImage, MediaError> {
        self.canvas.rgb()
    }
}

/// Decodes the next frame as RGBA.
fn next_frame(
    reader: &mut Reader<Cursor<Shared>>,
    buffer: &mut Vec<u8>,
) -> Result<Vec<[u8; 4]>, MediaError> {
    let failed = |error| MediaError::decoding(NAME, &error);
    let len = reader
        .output_buffer_size()
        .ok_or_else(|| MediaError::damaged(NAME, "a frame is too large"))?;
    buffer.resize(len, 0);
    let frame = reader.next_frame(buffer).map_err(failed)?;
    let bytes = &buffer[..frame.buffer_size()];
    match frame.color_type {
        ColorType::Rgba => Ok(bytes.as_chunks().0.to_vec()),
        ColorType::GrayscaleAlpha => {
            let pixels = bytes.as_chunks().0.iter();
            Ok(pixels
                .map(|&[gray, alpha]| [gray, gray, gray, alpha])
                .collect())
        }
        other => Err(MediaError::damaged(
            NAME,
            format!("unexpected color type {other:?}"),
        )),
    }
}

/// Blends a pixel over another one; colors are not premultiplied by alpha.
fn over(new: [u8; 4], old: [u8; 4]) -> [u8; 4] {
    match (new[3], old[3]) {
        (0, _) => old,
        (255, _) | (_, 0) => new,
        (a, b) => {
            let (a, b) = (u32::from(a) * 255, (255 - u32::from(a)) * u32::from(b));
            let mix = |i: usize| {
                let sum = u32::from(new[i]) * a + u32::from(old[i]) * b;
                ((sum + (a + b) / 2) / (a + b)) as u8
            };
            [mix(0), mix(1), mix(2), ((a + b + 127) / 255) as u8]
        }
    }
}
