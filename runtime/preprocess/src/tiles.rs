//! Square tiles of images as values for an encoder.

use super::error::{PreprocessError, allocate};
use super::image::RgbImage;
use super::normalize::{Normalization, SampleTable};

/// Appends tiles: `[tiles, 3, side, side]`.
pub(super) struct TileWriter {
    table: SampleTable,
    values: Vec<f32>,
    side: usize,
}

impl TileWriter {
    /// Allocates memory for a number of tiles.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        normalization: &Normalization,
        side: usize,
        tiles: usize,
    ) -> Result<Self, PreprocessError> {
        let len = tiles.saturating_mul(3 * side * side);
        Ok(Self {
            table: normalization.table(),
            values: allocate(len)?,
            side,
        })
    }

    /// Appends the tile in a row and a column of an image.
    ///
    /// # Panics
    /// If the image has no such tile.
    pub fn cut(&mut self, image: &RgbImage, [row, column]: [usize; 2]) {
        let side = self.side;
        for (channel, table) in self.table.iter().enumerate() {
            for y in row * side..(row + 1) * side {
                let pixels = &image.row(y)[column * side * 3..(column + 1) * side * 3];
                let values = pixels.chunks_exact(3);
                self.values
                    .extend(values.map(|pixel| table[usize::from(pixel[channel])]));
            }
        }
    }

    /// Returns the values.
    pub fn finish(self) -> Vec<f32> {
        self.values
    }
}
