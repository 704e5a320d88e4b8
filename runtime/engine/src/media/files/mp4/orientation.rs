//! Rotation of frames by the matrix of a track.

use edge_lmm_models::preprocess::RgbImage;

use crate::media::files::error::MediaError;

/// A rotation by a multiple of 90 degrees, possibly mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation {
    /// Rows become columns before anything is mirrored.
    transposes: bool,
    mirrors_columns: bool,
    mirrors_rows: bool,
}

impl Orientation {
    /// Returns the orientation of a matrix `[a, b, c, d]`, by which the pixel at `(x, y)` is shown
    /// at `(a x + c y, b x + d y)`. Other transformations are ignored.
    pub fn of(matrix: [i8; 4]) -> Self {
        let (transposes, columns, rows) = match matrix {
            [a, 0, 0, d] if a != 0 && d != 0 => (false, a, d),
            [0, b, c, 0] if b != 0 && c != 0 => (true, c, b),
            _ => (false, 1, 1),
        };
        Self {
            transposes,
            mirrors_columns: columns < 0,
            mirrors_rows: rows < 0,
        }
    }

    /// Returns width and height of an image after the rotation.
    pub fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        match self.transposes {
            true => (height, width),
            false => (width, height),
        }
    }

    /// Rotates an image.
    pub fn apply(self, image: RgbImage) -> Result<RgbImage, MediaError> {
        if self == Self::of([1, 0, 0, 1]) {
            return Ok(image);
        }
        let (width, height) = self.size((image.width(), image.height()));
        let mut pixels = Vec::with_capacity(image.pixels().len());
        for row in 0..height {
            let row = if self.mirrors_rows {
                height - 1 - row
            } else {
                row
            };
            for column in 0..width {
                let column = match self.mirrors_columns {
                    true => width - 1 - column,
                    false => column,
                };
                let (x, y) = match self.transposes {
                    true => (row, column),
                    false => (column, row),
                };
                pixels.extend_from_slice(&image.row(y)[3 * x..3 * x + 3]);
            }
        }
        Ok(RgbImage::new(width, height, pixels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_move_as_the_matrix_says() {
        // 0 1 2
        // 3 4 5
        let image = RgbImage::new(3, 2, (0..6).flat_map(|v| [v; 3]).collect()).unwrap();
        for (matrix, width, expected) in [
            ([1, 0, 0, 1], 3, [0, 1, 2, 3, 4, 5]),
            // A quarter turn clockwise and back, half a turn.
            ([0, 1, -1, 0], 2, [3, 0, 4, 1, 5, 2]),
            ([0, -1, 1, 0], 2, [2, 5, 1, 4, 0, 3]),
            ([-1, 0, 0, -1], 3, [5, 4, 3, 2, 1, 0]),
            // Mirrored, transposed.
            ([-1, 0, 0, 1], 3, [2, 1, 0, 5, 4, 3]),
            ([0, 1, 1, 0], 2, [0, 3, 1, 4, 2, 5]),
            // A rotation by 45 degrees is ignored.
            ([1, 1, -1, 1], 3, [0, 1, 2, 3, 4, 5]),
        ] {
            let turned = Orientation::of(matrix).apply(image.clone()).unwrap();
            let values: Vec<u8> = turned.pixels().iter().step_by(3).copied().collect();
            assert_eq!(
                (turned.width(), &values[..]),
                (width, &expected[..]),
                "{matrix:?}"
            );
        }
    }
}
