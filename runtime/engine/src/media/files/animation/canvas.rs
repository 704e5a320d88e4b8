//! The canvas on which animation frames are composed.

use edge_lmm_models::preprocess::RgbImage;

use crate::media::files::budget;
use crate::media::files::error::MediaError;

/// A rectangle of the canvas. The part beyond the canvas is ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

impl Rect {
    pub fn contains(&self, x: usize, y: usize) -> bool {
        (self.x..self.x + self.width).contains(&x) && (self.y..self.y + self.height).contains(&y)
    }
}

/// RGBA pixels in rows from the top.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

impl Canvas {
    pub fn new(width: usize, height: usize, color: [u8; 4]) -> Self {
        Self {
            width,
            height,
            pixels: vec![color; width * height],
        }
    }

    /// Replaces each pixel of `rect` at `x` and `y` by `pixel(x, y, old)`.
    pub fn map(&mut self, rect: Rect, mut pixel: impl FnMut(usize, usize, [u8; 4]) -> [u8; 4]) {
        let right = (rect.x + rect.width).min(self.width);
        for y in rect.y..(rect.y + rect.height).min(self.height) {
            for x in rect.x..right {
                let old = &mut self.pixels[y * self.width + x];
                *old = pixel(x, y, *old);
            }
        }
    }

    /// Draws a frame: each pixel becomes `blend(new, old)`.
    pub fn draw(
        &mut self,
        rect: Rect,
        frame: &[[u8; 4]],
        blend: impl Fn([u8; 4], [u8; 4]) -> [u8; 4],
    ) {
        self.map(rect, |x, y, old| {
            blend(frame[(y - rect.y) * rect.width + x - rect.x], old)
        });
    }

    pub fn fill(&mut self, rect: Rect, color: [u8; 4]) {
        self.map(rect, |_, _, _| color);
    }

    /// Returns the pixels of `rect` in the form that [`Self::draw`] takes.
    pub fn copy(&mut self, rect: Rect) -> Vec<[u8; 4]> {
        let mut pixels = vec![[0; 4]; rect.width * rect.height];
        self.map(rect, |x, y, old| {
            pixels[(y - rect.y) * rect.width + x - rect.x] = old;
            old
        });
        pixels
    }

    /// Returns width and height.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Drops the alpha channel, as Pillow's `convert("RGB")`.
    pub fn rgb(&self) -> Result<RgbImage, MediaError> {
        let mut pixels = Vec::with_capacity(self.pixels.len() * 3);
        for &[r, g, b, _] in &self.pixels {
            pixels.extend_from_slice(&[r, g, b]);
        }
        Ok(RgbImage::new(self.width, self.height, pixels)?)
    }
}

/// Treatment of a frame's area before the next frame is drawn.
pub(super) enum Disposal {
    Keep,
    Fill(Rect, [u8; 4]),
    Restore(Rect, Vec<[u8; 4]>),
}

impl Disposal {
    pub fn apply(self, canvas: &mut Canvas) {
        match self {
            Self::Keep => {}
            Self::Fill(rect, color) => canvas.fill(rect, color),
            Self::Restore(rect, pixels) => canvas.draw(rect, &pixels, |old, _| old),
        }
    }
}

/// Checks that the composition buffers fit into memory.
pub(super) fn check_size(width: usize, height: usize) -> Result<(), MediaError> {
    RgbImage::bytes(width, height)?;
    // The canvas, a frame and its saved background, as RGBA.
    budget::check((width * height * 12) as u64)
}
