//! Decoded images.

use std::fmt;
use std::sync::Arc;

use super::error::{MAX_PIXELS, PreprocessError, allocate};

/// An 8-bit RGB image, row by row from the top, three bytes per pixel. Clones share the pixels.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RgbImage {
    width: usize,
    height: usize,
    pixels: Arc<Vec<u8>>,
}

impl RgbImage {
    /// Maximum number of pixels of an image.
    pub const MAX_PIXELS: usize = MAX_PIXELS;

    /// Creates an image from `width * height * 3` bytes.
    ///
    /// # Errors
    /// If the image is empty or has more than [`Self::MAX_PIXELS`] pixels, or if the number of
    /// bytes does not match its size.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, PreprocessError> {
        let expected = Self::bytes(width, height)?;
        if pixels.len() != expected {
            return Err(PreprocessError::PixelCount {
                width,
                height,
                found: pixels.len(),
                expected,
            });
        }
        Ok(Self {
            width,
            height,
            pixels: pixels.into(),
        })
    }

    /// Returns the bytes of an image of this size.
    ///
    /// # Errors
    /// If the size is empty or too large.
    pub fn bytes(width: usize, height: usize) -> Result<usize, PreprocessError> {
        if width == 0 || height == 0 {
            return Err(PreprocessError::Empty { width, height });
        }
        match width.checked_mul(height) {
            Some(pixels) if pixels <= MAX_PIXELS => Ok(pixels * 3),
            _ => Err(PreprocessError::TooLarge { width, height }),
        }
    }

    /// Returns the pixels per row, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the number of rows, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the bytes as `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Returns one row of `width * 3` bytes.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.width * 3..][..self.width * 3]
    }

    /// Returns the part of at most `width` x `height` pixels whose first one is at column `x` and row
    /// `y`.
    ///
    /// # Errors
    /// If there is no such pixel, or not enough memory.
    pub(super) fn crop(
        &self,
        x: usize,
        y: usize,
        width: usize,
        height: usize,
    ) -> Result<Self, PreprocessError> {
        let width = width.min(self.width.saturating_sub(x));
        let height = height.min(self.height.saturating_sub(y));
        let mut pixels = allocate(Self::bytes(width, height)?)?;
        for row in y..y + height {
            pixels.extend_from_slice(&self.row(row)[x * 3..(x + width) * 3]);
        }
        Self::new(width, height, pixels)
    }
}

/// Returns width and height of the frames of a video.
///
/// # Errors
/// If there are no frames or they differ in size.
pub fn frame_size(frames: &[RgbImage]) -> Result<(usize, usize), PreprocessError> {
    let sizes = frames.iter().map(|frame| (frame.width(), frame.height()));
    let expected = sizes.clone().next().ok_or(PreprocessError::NoFrames)?;
    match sizes.enumerate().find(|&(_, found)| found != expected) {
        None => Ok(expected),
        Some((index, found)) => Err(PreprocessError::FrameSize {
            index,
            found,
            expected,
        }),
    }
}

impl fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}
