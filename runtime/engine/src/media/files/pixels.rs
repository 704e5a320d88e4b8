//! Pixels of still images as they are stored in the file.

use std::io::Cursor;

use edge_lmm_models::preprocess::RgbImage;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::budget;
use super::error::MediaError;
use super::format::Format;

/// Maximum bytes of metadata (color profiles, texts) that a decoder keeps.
pub(super) const MAX_METADATA: usize = 64 << 20;

/// Decodes a still image without converting its pixels.
pub(super) fn decode_pixels(
    format: Format,
    decoder: ImageFormat,
    bytes: &[u8],
) -> Result<DynamicImage, MediaError> {
    let failed = |error| MediaError::decoding(format.name(), &error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), decoder);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_METADATA as u64);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    // Damaged metadata does not make an image unreadable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    check_size(format, &decoder, orientation)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Rejects images that are too large before memory is allocated for them.
fn check_size(
    format: Format,
    decoder: &impl ImageDecoder,
    orientation: Orientation,
) -> Result<(), MediaError> {
    let (width, height) = decoder.dimensions();
    let rgb = RgbImage::bytes(width as usize, height as usize)? as u64;
    let pixels = rgb / 3;
    // Coefficients of progressive JPEG; planes and predictions of WebP.
    let working = match format {
        Format::Jpeg | Format::WebP => 6 * pixels,
        _ => 0,
    };
    let turned = if orientation == Orientation::NoTransforms {
        0
    } else {
        decoder.total_bytes()
    };
    budget::check(decoder.total_bytes() + working.max(turned).max(rgb))
}
