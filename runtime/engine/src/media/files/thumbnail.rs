//! Small copies of frames, for the difference of two frames.

use edge_lmm_models::preprocess::RgbImage;

/// Frames of up to this many pixels per side are compared as they are.
const MAX_SIDE: usize = 224;

/// A frame in which each value is the mean of a square block of pixels. Blocks are as small as
/// `MAX_SIDE` permits: one pixel in small frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Thumbnail {
    width: usize,
    height: usize,
    /// 256 times the mean of each block and channel: rounding to 8 bits would lose small changes.
    values: Vec<u16>,
}

impl Thumbnail {
    /// Averages an image.
    pub fn new(image: &RgbImage) -> Self {
        let side = image.width().max(image.height()).div_ceil(MAX_SIDE);
        let (width, height) = (image.width().div_ceil(side), image.height().div_ceil(side));
        let mut values = Vec::with_capacity(width * height * 3);
        let mut sums = vec![0u32; width * 3];
        for top in (0..image.height()).step_by(side) {
            let rows = side.min(image.height() - top);
            sums.fill(0);
            for y in top..top + rows {
                let blocks = image.row(y).chunks(side * 3);
                for (sum, block) in sums.chunks_exact_mut(3).zip(blocks) {
                    for pixel in block.chunks_exact(3) {
                        (0..3).for_each(|channel| sum[channel] += u32::from(pixel[channel]));
                    }
                }
            }
            for (x, sum) in sums.chunks_exact(3).enumerate() {
                let columns = side.min(image.width() - x * side);
                let pixels = (rows * columns) as u32;
                values.extend(sum.iter().map(|&sum| (sum * 256 / pixels) as u16));
            }
        }
        Self {
            width,
            height,
            values,
        }
    }

    /// Mean absolute difference of all values, from 0 to 255; infinite for frames of different
    /// sizes.
    pub fn difference(&self, other: &Self) -> f64 {
        if (self.width, self.height) != (other.width, other.height) {
            return f64::INFINITY;
        }
        let pairs = self.values.iter().zip(&other.values);
        let sum: u64 = pairs.map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
        sum as f64 / (256 * self.values.len()) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize, pixel: impl Fn(usize) -> u8) -> RgbImage {
        RgbImage::new(width, height, (0..width * height * 3).map(pixel).collect()).unwrap()
    }

    fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
        Thumbnail::new(a).difference(&Thumbnail::new(b))
    }

    #[test]
    fn small_frames_are_compared_whole() {
        let a = image(224, 3, |_| 7);
        let b = image(224, 3, |i| if i == 1000 { 8 } else { 7 });
        assert_eq!(difference(&a, &b), 1.0 / (224.0 * 9.0));
        assert_eq!(difference(&a, &a), 0.0);
        assert_eq!(difference(&a, &image(224, 3, |_| 255)), 248.0);
    }

    #[test]
    fn large_frames_are_averaged_without_losing_small_changes() {
        // Blocks of 3x3; the last column and row have smaller ones.
        let a = image(500, 301, |_| 100);
        let b = image(500, 301, |i| if i < 90 { 101 } else { 100 });
        assert_eq!(Thumbnail::new(&a).values.len(), 167 * 101 * 3);
        // Three channels of ten blocks change by a third.
        let exact = 10.0 / (167.0 * 101.0 * 3.0);
        assert!((difference(&a, &b) / exact - 1.0).abs() < 0.02);
        assert_eq!(difference(&a, &image(500, 301, |_| 255)), 155.0);
    }

    #[test]
    fn frames_of_other_sizes_differ() {
        let a = image(4, 2, |_| 0);
        assert!(difference(&a, &image(2, 4, |_| 0)).is_infinite());
    }
}
