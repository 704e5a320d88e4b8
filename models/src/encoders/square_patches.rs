//! Square images of a fixed size in square patches, as used by CLIP and EVA-CLIP.

use crate::error::ModelError;
use crate::sizes::Section;

/// Sizes of an image and its patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SquarePatches {
    /// Channels of an image.
    pub channels: usize,
    /// Side of an image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

impl SquarePatches {
    /// Checks the sizes, which are `image_size` and `patch_size` of `section`.
    ///
    /// # Errors
    /// If a size is out of range, or a patch is larger than an image.
    pub fn check(&self, section: Section<'_>) -> Result<(), ModelError> {
        section.sizes(&[
            ("image_size", self.image_size, 1 << 13),
            ("patch_size", self.patch_size, 1 << 10),
        ])?;
        if self.patch_size > self.image_size {
            return Err(ModelError::config(format!(
                "{}: a patch of {} pixels is larger than an image of {}",
                section.0, self.patch_size, self.image_size
            )));
        }
        Ok(())
    }

    /// Returns the number of patches per side of an image; pixels beyond the last whole patch are
    /// ignored.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Returns the number of patches of an image.
    pub fn count(&self) -> usize {
        self.side() * self.side()
    }

    /// Returns the number of values of a patch.
    pub fn width(&self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    /// Cuts the patches with the given numbers in raster order from an image.
    ///
    /// # Shapes
    /// - image: `[channels, image_size, image_size]`
    /// - result: `[patches, channels * patch_size * patch_size]`, a patch's values ordered channel,
    ///   row, column as in the reference's convolution
    pub fn cut(&self, image: &[f32], numbers: impl IntoIterator<Item = usize>) -> Vec<f32> {
        let (size, patch, side) = (self.image_size, self.patch_size, self.side());
        let mut patches = Vec::with_capacity(self.count() * self.width());
        for (row, column) in numbers
            .into_iter()
            .map(|number| (number / side, number % side))
        {
            for channel in 0..self.channels {
                for y in row * patch..(row + 1) * patch {
                    let start = (channel * size + y) * size + column * patch;
                    patches.extend_from_slice(&image[start..start + patch]);
                }
            }
        }
        patches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand: the value of a pixel is `100 * channel + 10 * row + column`.
    #[test]
    fn patches_are_ordered_channel_row_column() {
        let patches = SquarePatches {
            channels: 3,
            image_size: 5,
            patch_size: 2,
        };
        let image: Vec<f32> = (0..3 * 5 * 5)
            .map(|i| (i / 25 * 100 + i / 5 % 5 * 10 + i % 5) as f32)
            .collect();
        let cut = patches.cut(&image, 0..4);
        assert_eq!(cut.len(), 4 * 12);
        assert_eq!(
            cut[12..24],
            [
                2., 3., 12., 13., 102., 103., 112., 113., 202., 203., 212., 213.
            ]
        );
        assert_eq!(cut[24..28], [20., 21., 30., 31.]);
    }

    #[test]
    fn a_patch_fits_into_the_image() {
        let check = |image_size, patch_size| {
            let patches = SquarePatches {
                channels: 3,
                image_size,
                patch_size,
            };
            patches.check(Section("vision_config"))
        };
        assert!(check(14, 14).is_ok());
        let error = check(14, 15).unwrap_err().to_string();
        assert!(
            error.contains("larger than an image") && error.contains("vision_config"),
            "{error}"
        );
        assert!(check(14, 0).is_err());
    }
}
