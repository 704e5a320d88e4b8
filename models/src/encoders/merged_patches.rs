//! Square images whose patches become tokens in squares, as in SmolVLM and Gemma 3. A unit is a square
//! of patches; the units of several images are counted through.

use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, probe};

use crate::encoders::square_patches::SquarePatches;
use crate::reduce::rows::indices;

/// Sizes of an image, its patches and its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MergedPatches {
    /// The patches.
    pub patches: SquarePatches,
    /// Patches per side of a unit, a divisor of those per side of an image.
    pub merge: usize,
}

impl MergedPatches {
    /// Returns the number of units per side of an image.
    pub fn side(&self) -> usize {
        self.patches.side() / self.merge
    }

    /// Returns the number of units of an image.
    pub fn units(&self) -> usize {
        self.side() * self.side()
    }

    /// Returns the number of patches of a unit.
    pub fn rows(&self) -> usize {
        self.merge * self.merge
    }

    /// Returns the patches of a unit of an image, row by row.
    fn patches_of(&self, unit: usize) -> impl Iterator<Item = usize> {
        let (merge, side) = (self.merge, self.side());
        let (row, column) = (unit / side * merge, unit % side * merge);
        (0..merge * merge).map(move |i| (row + i / merge) * side * merge + column + i % merge)
    }

    /// Returns the place of each patch of `units` in its image, in raster order.
    pub fn places(&self, units: &[usize]) -> Vec<usize> {
        let patches = |unit| self.patches_of(unit % self.units());
        units.iter().copied().flat_map(patches).collect()
    }

    /// Cuts the patches of `units`, sorted, from images.
    ///
    /// # Shapes
    /// - images: `[images, channels, image_size, image_size]`
    /// - result: `[units * rows, channels * patch_size * patch_size]`
    pub fn cut(&self, images: &[f32], units: &[usize]) -> Vec<f32> {
        let of_image = self.units();
        let len = self.patches.channels * self.patches.image_size * self.patches.image_size;
        let by_image = units.chunk_by(|a, b| a / of_image == b / of_image);
        let cut = by_image.flat_map(|units| {
            let image = units[0] / of_image;
            let image = &images[image * len..(image + 1) * len];
            self.patches.cut(image, self.places(units))
        });
        cut.collect()
    }

    /// Captures the patches `x` of `units` in raster order of each image.
    pub fn capture<B: KernelBackend>(&self, name: &str, x: &Tensor<B, 2>, units: &[usize]) {
        if !probe::active() {
            return;
        }
        let count = self.units() * self.rows();
        let images = units.iter().map(|unit| unit / self.units() * count);
        let images = images.flat_map(|first| std::iter::repeat_n(first, self.rows()));
        let patches = images.zip(self.places(units));
        let mut rows: Vec<(usize, usize)> = patches
            .map(|(first, place)| first + place)
            .zip(0..)
            .collect();
        rows.sort_unstable();
        let rows: Vec<usize> = rows.into_iter().map(|(_, row)| row).collect();
        probe::capture(name, &x.clone().select(0, indices(&rows, &x.device())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand for an image of 4x4 patches of one pixel in units of 2x2.
    #[test]
    fn units_are_squares_of_patches() {
        let merged = MergedPatches {
            patches: SquarePatches {
                channels: 1,
                image_size: 4,
                patch_size: 1,
            },
            merge: 2,
        };
        assert_eq!((merged.side(), merged.units(), merged.rows()), (2, 4, 4));
        assert_eq!(merged.places(&[1, 6]), [2, 3, 6, 7, 8, 9, 12, 13]);
        let images: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let cut = merged.cut(&images, &[1, 6]);
        assert_eq!(cut, [2., 3., 6., 7., 24., 25., 28., 29.]);
    }
}
