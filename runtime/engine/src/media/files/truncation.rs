//! Checks that a file is complete before it is decoded.
//!
//! Decoders treat truncated files differently: some fill the missing part with gray. Each container
//! states its end, so the check does not decode. As in Pillow, a truncated file is rejected; only a
//! GIF may lack its last byte.

use super::error::MediaError;
use super::format::Format;
use super::pieces::{Pieces, png_chunk, word};

/// Checks that an image is complete.
///
/// # Errors
/// [`MediaError::Truncated`] if it is not; [`MediaError::Damaged`] if the file is too small for the
/// image size in its header.
pub(super) fn check(format: Format, bytes: &[u8]) -> Result<(), MediaError> {
    match format {
        Format::Jpeg => check_jpeg(bytes),
        Format::Png => check_png(bytes),
        Format::WebP => check_webp(bytes),
        Format::Bmp => check_bmp(bytes),
        // GIF files are checked while their frames are counted.
        _ => Ok(()),
    }
}

fn truncated(format: Format, bytes: &[u8], missing: &str) -> MediaError {
    let message = format!("it ends after {} bytes, {missing}", bytes.len());
    MediaError::truncated(format.name(), message)
}

/// State of a walk over a JPEG file.
#[derive(Default)]
struct Jpeg {
    /// Marker of the frame header, width and height.
    frame: Option<(u8, u64, u64)>,
    /// Bytes of entropy-coded data.
    data: u64,
}

/// Checks a JPEG (ITU-T T.81, annex B): segments up to the end-of-image marker.
fn check_jpeg(bytes: &[u8]) -> Result<(), MediaError> {
    let mut jpeg = Jpeg::default();
    let mut pieces = Pieces(bytes);
    match jpeg.walk(&mut pieces) {
        None => Err(truncated(
            Format::Jpeg,
            bytes,
            "without an end-of-image marker",
        )),
        Some(()) => jpeg.check_data(),
    }
}

impl Jpeg {
    /// Walks to the end-of-image marker; `None` if there is none.
    fn walk(&mut self, pieces: &mut Pieces<'_>) -> Option<()> {
        loop {
            match next_marker(pieces)? {
                0xd9 => return Some(()),
                // Markers without a segment.
                0x01 | 0xd0..=0xd8 => {}
                marker => {
                    let len = usize::from(u16::from_be_bytes(pieces.array()?));
                    let segment = pieces.take(len.saturating_sub(2))?;
                    match (marker, segment) {
                        (0xc0..=0xc2, &[_, h0, h1, w0, w1, ..]) => {
                            let [height, width] = [[h0, h1], [w0, w1]].map(u16::from_be_bytes);
                            self.frame = Some((marker, width.into(), height.into()));
                        }
                        (0xda, _) => self.data += skip_entropy_coded(pieces)?,
                        _ => {}
                    }
                }
            }
        }
    }

    /// Checks that the data can hold the image: every block of 8x8 samples has a code for its mean
    /// and, in baseline images, another one for its end. The shortest codes have one bit.
    fn check_data(&self) -> Result<(), MediaError> {
        let Some((marker, width, height)) = self.frame else {
            return Ok(());
        };
        let bits = if marker == 0xc2 { 1 } else { 2 };
        let needed = width.div_ceil(8) * height.div_ceil(8) * bits / 8;
        if self.data < needed {
            let message = format!(
                "{} bytes of data for {width}x{height} pixels, expected at least {needed}",
                self.data
            );
            return Err(MediaError::damaged("JPEG", message));
        }
        Ok(())
    }
}

/// Skips past the next marker and returns it. Other bytes in between are ignored, as decoders do.
fn next_marker(pieces: &mut Pieces<'_>) -> Option<u8> {
    loop {
        if pieces.byte()? == 0xff {
            let mut marker = pieces.byte()?;
            while marker == 0xff {
                marker = pieces.byte()?;
            }
            if marker != 0 {
                return Some(marker);
            }
        }
    }
}

/// Skips the data of a scan up to the next marker other than restarts. Returns the number of bytes.
fn skip_entropy_coded(pieces: &mut Pieces<'_>) -> Option<u64> {
    let data = pieces.0;
    let is_end = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
    let len = data.windows(2).position(is_end)?;
    pieces.0 = &data[len..];
    Some(len as u64)
}

/// Checks a PNG: chunks up to `IEND`.
fn check_png(bytes: &[u8]) -> Result<(), MediaError> {
    let mut pieces = Pieces(bytes.get(8..).unwrap_or_default());
    while let Some((name, _)) = png_chunk(&mut pieces) {
        if name == b"IEND" {
            return Ok(());
        }
    }
    Err(truncated(Format::Png, bytes, "without its last chunk"))
}

/// Checks a WebP: the header contains the file length.
fn check_webp(bytes: &[u8]) -> Result<(), MediaError> {
    let announced = u64::from(word(bytes, 4).unwrap_or(0)) + 8;
    // The padding of the last chunk may be missing.
    if (bytes.len() as u64) < announced - announced % 2 {
        let missing = format!("its header announces {announced}");
        return Err(truncated(Format::WebP, bytes, &missing));
    }
    Ok(())
}

/// Checks a BMP: the size of uncompressed rows is known.
fn check_bmp(bytes: &[u8]) -> Result<(), MediaError> {
    let needed = bmp_len(bytes)
        .ok_or_else(|| truncated(Format::Bmp, bytes, "in the middle of its header"))?;
    if (bytes.len() as u64) < needed {
        let missing = format!("expected {needed}");
        return Err(truncated(Format::Bmp, bytes, &missing));
    }
    Ok(())
}

/// Returns the length of a BMP file according to its header, or `None` if that is incomplete.
fn bmp_len(bytes: &[u8]) -> Option<u64> {
    let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (start, header) = (word(bytes, 10)?, word(bytes, 14)?);
    let (width, height, bits, compression) = if header == 12 {
        let (width, height) = (short(18)?, short(20)?);
        (u64::from(width), u64::from(height), short(24)?, 0)
    } else {
        let (width, height) = (word(bytes, 18)?, word(bytes, 22)?.cast_signed());
        let height = height.unsigned_abs().into();
        (u64::from(width), height, short(28)?, word(bytes, 30)?)
    };
    // Run-length encoded data has no fixed size; the decoder finds its end.
    let runs = !matches!(compression, 0 | 3 | 6);
    let row = (width * u64::from(bits)).div_ceil(32) * 4;
    let pixels = if runs { 0 } else { row.saturating_mul(height) };
    Some(pixels.saturating_add(start.into()))
}
