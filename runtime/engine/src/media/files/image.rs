//! Still images: PNG, JPEG, WebP, BMP and GIF (the first frame of an animated GIF or WebP).
//!
//! Images are converted to 8-bit RGB as with Pillow's `convert("RGB")`, the first step of the
//! processors of `transformers`: transparency is dropped without blending, 16-bit colors lose their
//! low byte, and values of 16-bit gray images above 255 become 255. Exif orientation is applied, as
//! by `transformers.image_utils.load_image`.

use std::path::Path;

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::preprocess::RgbImage;
use image::{DynamicImage, ImageFormat};

use super::animation::{self, Animation};
use super::error::MediaError;
use super::format::{Format, HEAD, unknown};
use super::guard::guarded;
use super::pixels::decode_pixels;
use super::shared::Shared;
use super::source::{Content, Source};
use super::truncation;

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
    guarded(|| decode(format, &bytes.to_vec().into()))
}

impl Source {
    /// Decodes an image.
    ///
    /// # Errors
    /// If it is not an image, is truncated or damaged, or exceeds the memory limit.
    pub fn image(&self) -> Result<RgbImage, MediaError> {
        self.read(|| match self.content() {
            Content::Whole(format, bytes) => decode(*format, bytes),
            Content::Unsupported(Format::Other(MediaKind::Image, name)) => Err(unsupported(name)),
            other => Err(other.wrong("image")),
        })
    }
}

/// Decodes an image of this format.
pub(super) fn decode(format: Format, bytes: &Shared) -> Result<RgbImage, MediaError> {
    let decoder = match format {
        Format::Gif => return animation::first_frame(format, bytes),
        Format::WebP if Animation::of(format, bytes).is_some() => {
            return animation::first_frame(format, bytes);
        }
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::WebP => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Other(MediaKind::Image, name) => return Err(unsupported(name)),
        other => return Err(other.wrong("image")),
    };
    truncation::check(format, bytes)?;
    to_rgb(decode_pixels(format, decoder, bytes)?)
}

/// Returns the error for an image of an unsupported format.
fn unsupported(name: &str) -> MediaError {
    MediaError::Unsupported {
        format: name.to_owned(),
        advice: "convert the image to PNG or JPEG".to_owned(),
    }
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
