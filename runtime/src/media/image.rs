//! Still pictures: PNG, JPEG, WebP, BMP and GIF (of an animation the first frame).
//!
//! Pictures become 8-bit RGB as by Pillow's `convert("RGB")`, which the processors of
//! `transformers` begin with: transparency is dropped without blending, 16-bit colours lose their
//! low byte, and values of 16-bit grey pictures above 255 become 255.
//! Orientation in Exif data is applied, as `transformers.image_utils.load_image` does.

use std::io::Cursor;
use std::path::Path;

use edge_lmm_models::preprocess::RgbImage;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::error::MediaError;
use super::kind::{self, Format, MediaKind};
use super::{file, kind::unknown};

/// Reads a picture.
///
/// # Errors
/// If the file cannot be read, is no picture, is damaged, or has more than
/// [`RgbImage::MAX_PIXELS`] pixels.
pub fn load_image(path: &Path) -> Result<RgbImage, MediaError> {
    let load = || {
        // Before all of a file is read that is none.
        picture_format(&file::head(path)?)?;
        decode_image(&file::read(path, "picture")?)
    };
    load().map_err(|error: MediaError| error.of(path))
}

/// Decodes a picture.
///
/// # Errors
/// As [`load_image`].
pub fn decode_image(bytes: &[u8]) -> Result<RgbImage, MediaError> {
    let (format, name) = picture_format(bytes)?;
    let damaged = |error| MediaError::damaged(name, error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits(RgbImage::MAX_PIXELS));
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    check_size(&decoder)?;
    // A picture is shown even if what says how it was held is damaged.
    let orientation = decoder.orientation().ok();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if let Some(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    to_rgb(picture)
}

/// The decoder for a picture that begins with those bytes, and its name.
fn picture_format(head: &[u8]) -> Result<(ImageFormat, &'static str), MediaError> {
    let format = Format::of(&head[..head.len().min(file::HEAD)]);
    let format = format.ok_or_else(|| unknown(&head[..head.len().min(file::HEAD)], "picture"))?;
    let decoder = match format {
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::Gif => ImageFormat::Gif,
        Format::WebP => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Other(MediaKind::Image, name) => {
            return Err(MediaError::Unsupported {
                format: name.to_owned(),
                advice: "convert the picture to PNG or JPEG".to_owned(),
            });
        }
        other => {
            return Err(MediaError::WrongKind {
                wanted: "picture",
                found: format!("a {} file", other.name()),
                expected: kind::expected("picture"),
            });
        }
    };
    Ok((decoder, format.name()))
}

/// Limits for decoders whose pictures have that many pixels: eight bytes per pixel, twice, and
/// room for tables.
pub(super) fn limits(pixels: usize) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels as u64 * 16 + (64 << 20));
    limits
}

/// Refuses pictures that are too large, before memory is taken for them.
pub(super) fn check_size(decoder: &impl ImageDecoder) -> Result<(usize, usize), MediaError> {
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    RgbImage::bytes(width, height)?;
    Ok((width, height))
}

/// 8-bit RGB as Pillow makes it.
pub(super) fn to_rgb(picture: DynamicImage) -> Result<RgbImage, MediaError> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels: Vec<u8> = match picture {
        DynamicImage::ImageRgb8(picture) => picture.into_raw(),
        DynamicImage::ImageRgba8(picture) => {
            let pixels = picture.as_raw().chunks_exact(4);
            pixels.flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma8(picture) => {
            picture.as_raw().iter().flat_map(|&v| [v; 3]).collect()
        }
        DynamicImage::ImageLumaA8(picture) => {
            let pixels = picture.as_raw().chunks_exact(2);
            pixels.flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageLuma16(picture) => clip_grey(picture.as_raw()),
        DynamicImage::ImageLumaA16(picture) => {
            let pixels = picture.as_raw().chunks_exact(2);
            pixels.flat_map(|p| [high_byte(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(picture) => {
            picture.as_raw().iter().map(|&v| high_byte(v)).collect()
        }
        DynamicImage::ImageRgba16(picture) => {
            let pixels = picture.as_raw().chunks_exact(4);
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

fn clip_grey(values: &[u16]) -> Vec<u8> {
    if values.iter().any(|&v| v > 255) {
        log::warn!(
            "16-bit grey picture: values above 255 become white, as in the reference processors; \
             convert it to 8 bits to keep its shades"
        );
    }
    let clipped = values.iter().map(|&v| v.min(255) as u8);
    clipped.flat_map(|v| [v; 3]).collect()
}
