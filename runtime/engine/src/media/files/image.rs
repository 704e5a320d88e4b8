//! Still images: PNG, JPEG, WebP, BMP and GIF (the first frame of an animated GIF or WebP).
//!
//! Images are converted to 8-bit RGB as with Pillow's `convert("RGB")`, the first step of the
//! processors of `transformers`: transparency is dropped without blending, 16-bit colors lose their
//! low byte, and values of 16-bit gray images above 255 become 255. Exif orientation is applied, as
//! by `transformers.image_utils.load_image`.

use std::io::Cursor;
use std::path::Path;

use edge_lmm_models::preprocess::RgbImage;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::error::MediaError;
use super::format::{Format, HEAD, unknown};
use super::guard::guarded;
use super::source::Source;
use super::{animation, budget, truncation};

/// Maximum bytes of metadata (color profiles, texts) that a decoder keeps.
pub(super) const MAX_METADATA: usize = 64 << 20;

/// Reads an image from a file.
///
/// # Errors
/// If the file cannot be read, is not an image, is truncated or damaged, has more than
/// [`RgbImage::MAX_PIXELS`] pixels, or decoding would exceed the memory limit.
pub fn load_image(path: &Path) -> Result<RgbImage, MediaError> {
    Source::file(path)?.image()
}

/// Decodes an image.
///
/// # Errors
/// As [`load_image`].
pub fn decode_image(bytes: &[u8]) -> Result<RgbImage, MediaError> {
    let head = &bytes[..bytes.len().min(HEAD)];
    let format = Format::of(head).ok_or_else(|| unknown(head, "image"))?;
    guarded(|| decode(format, bytes))
}

/// Decodes an image of this format.
pub(super) fn decode(format: Format, bytes: &[u8]) -> Result<RgbImage, MediaError> {
    let decoder = match format {
        Format::Gif => return animation::first_frame(format, bytes),
        Format::WebP if animation::Animation::of(format, bytes).is_some() => {
            return animation::first_frame(format, bytes);
        }
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::WebP => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Other(super::kind::MediaKind::Image, name) => return Err(unsupported(name)),
        other => return Err(other.wrong("image")),
    };
    truncation::check(format, bytes)?;
    to_rgb(decode_pixels(format, decoder, bytes)?)
}

/// Returns the error for an image of an unsupported format.
pub(super) fn unsupported(name: &str) -> MediaError {
    MediaError::Unsupported {
        format: name.to_owned(),
        advice: "convert the image to PNG or JPEG".to_owned(),
    }
}

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

/// Converts to 8-bit RGB as Pillow does.
fn to_rgb(image: DynamicImage) -> Result<RgbImage, MediaError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => {
            let pixels = image.as_raw().chunks_exact(4);
            pixels.flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            let pixels = image.as_raw().chunks_exact(2);
            pixels.flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageLuma16(image) => clip_gray(image.as_raw()),
        DynamicImage::ImageLumaA16(image) => {
            let pixels = image.as_raw().chunks_exact(2);
            pixels.flat_map(|p| [high_byte(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&v| high_byte(v)).collect(),
        DynamicImage::ImageRgba16(image) => {
            let pixels = image.as_raw().chunks_exact(4);
            pixels
                .flat_map(|p| [high_byte(p[0]), high_byte(p[1]), high_byte(p[2])])
                .collect()
        }
        other => other.into_rgb8().into_raw(),
    };
    Ok(RgbImage::new(width, height, pixels)?)
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

fn clip_gray(values: &[u16]) -> Vec<u8> {
    if values.iter().any(|&v| v > 255) {
        log::warn!(
            "16-bit gray image: values above 255 become white, as in the reference processors; \
             convert it to 8 bits to keep its shades"
        );
    }
    let clipped = values.iter().map(|&v| v.min(255) as u8);
    clipped.flat_map(|v| [v; 3]).collect()
}
