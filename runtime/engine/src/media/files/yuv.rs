//! Conversion of Y'CbCr planes to RGB.
//!
//! Chroma samples are replicated over their area, as in ffmpeg's default conversion.

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;

/// Color matrix: the contributions of red and blue to luma.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matrix {
    pub red: f32,
    pub blue: f32,
}

impl Matrix {
    /// ITU-R BT.601, the matrix of video that does not announce one.
    pub const BT601: Self = Self {
        red: 0.299,
        blue: 0.114,
    };
}

/// Meaning of the values of planes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Color {
    pub matrix: Matrix,
    /// `true` for values from 0 to 255, `false` for the range of video: luma from 16 to 235, chroma
    /// from 16 to 240.
    pub full_range: bool,
}

/// Planes of 8-bit samples.
pub(super) struct Planes<'a> {
    pub width: usize,
    pub height: usize,
    /// Rows of `luma_stride` samples.
    pub luma: &'a [u8],
    pub luma_stride: usize,
    /// `None` for gray.
    pub chroma: Option<ChromaPlanes<'a>>,
}

/// Planes of chroma: one sample per `.columns` columns and `.rows` rows.
pub(super) struct ChromaPlanes<'a> {
    pub blue: &'a [u8],
    pub red: &'a [u8],
    pub stride: usize,
    pub columns: usize,
    pub rows: usize,
}

impl Planes<'_> {
    /// Converts to RGB.
    pub fn rgb(&self, color: Color) -> Result<RgbImage, MediaError> {
        let convert = Conversion::new(color);
        let mut pixels = Vec::with_capacity(self.width * self.height * 3);
        for (y, row) in self
            .luma
            .chunks(self.luma_stride)
            .take(self.height)
            .enumerate()
        {
            let row = &row[..self.width];
            match &self.chroma {
                Some(chroma) => {
                    let start = y / chroma.rows * chroma.stride;
                    pixels.extend(row.iter().enumerate().flat_map(|(x, &luma)| {
                        let at = start + x / chroma.columns;
                        convert.rgb(luma, chroma.blue[at], chroma.red[at])
                    }));
                }
                None => pixels.extend(row.iter().flat_map(|&luma| convert.rgb(luma, 128, 128))),
            }
        }
        Ok(RgbImage::new(self.width, self.height, pixels)?)
    }
}

struct Conversion {
    matrix: Matrix,
    black: f32,
    luma: f32,
    chroma: f32,
}

impl Conversion {
    fn new(color: Color) -> Self {
        let (black, luma, chroma) = match color.full_range {
            true => (0.0, 1.0, 1.0),
            false => (16.0, 255.0 / 219.0, 255.0 / 224.0),
        };
        Self {
            matrix: color.matrix,
            black,
            luma,
            chroma,
        }
    }

    fn rgb(&self, luma: u8, blue: u8, red: u8) -> [u8; 3] {
        let Matrix { red: kr, blue: kb } = self.matrix;
        let y = (f32::from(luma) - self.black) * self.luma;
        let cb = (f32::from(blue) - 128.0) * self.chroma;
        let cr = (f32::from(red) - 128.0) * self.chroma;
        let r = y + 2.0 * (1.0 - kr) * cr;
        let b = y + 2.0 * (1.0 - kb) * cb;
        let g = (y - kr * r - kb * b) / (1.0 - kr - kb);
        // The cast saturates.
        [r, g, b].map(|v| v.round() as u8)
    }
}
