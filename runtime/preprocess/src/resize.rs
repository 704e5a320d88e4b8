//! Resizing of 8-bit images, bit-identical to Pillow and torchvision.
//!
//! Both resample rows and columns one after the other in fixed-point arithmetic and round to 8 bits
//! between the passes. They differ in the number of fractional bits and in the order of the passes.
//! Pillow: `Resample.c`; torchvision: the 8-bit kernel of `upsample_bicubic2d_aa` in ATen's
//! `UpSampleKernel.cpp`.

use super::error::{PreprocessError, allocate};
use super::filter::{Filter, Windows};
use super::image::RgbImage;

/// Resizes as `Image.resize((width, height), filter)` of Pillow 13. Older versions always resample
/// the rows first, which gives slightly different values at sharp edges where this version starts
/// with the columns.
///
/// # Errors
/// If the new size is empty or too large.
pub fn resize(
    image: &RgbImage,
    width: usize,
    height: usize,
    filter: Filter,
) -> Result<RgbImage, PreprocessError> {
    // Found by comparing images of 7000 sizes with both orders.
    let lost_rows = image.height().saturating_sub(height);
    let columns_first = lost_rows > 2 * image.width().saturating_sub(width);
    let mut passes = [Pass::Rows(width), Pass::Columns(height)];
    if columns_first {
        passes.reverse();
    }
    RgbImage::bytes(width, height)?;
    run(image, passes, filter, FixedPoint::pillow)
}

/// Resizes as the bicubic, antialiased `torchvision.transforms.v2.functional.resize` of 8-bit
/// tensors on CPUs. (Results of its bilinear mode depend on the CPU.)
///
/// # Errors
/// If the new size is empty or too large.
pub fn resize_torchvision(
    image: &RgbImage,
    width: usize,
    height: usize,
) -> Result<RgbImage, PreprocessError> {
    let passes = [Pass::Rows(width), Pass::Columns(height)];
    RgbImage::bytes(width, height)?;
    run(image, passes, Filter::Bicubic, FixedPoint::torchvision)
}

/// Resampling along one dimension to a new length.
#[derive(Clone, Copy)]
enum Pass {
    Rows(usize),
    Columns(usize),
}

fn run(
    image: &RgbImage,
    passes: [Pass; 2],
    filter: Filter,
    quantize: fn(&Windows) -> FixedPoint,
) -> Result<RgbImage, PreprocessError> {
    let mut resized = None;
    for pass in passes {
        let source = resized.as_ref().unwrap_or(image);
        let (from, to) = match pass {
            Pass::Rows(width) => (source.width(), width),
            Pass::Columns(height) => (source.height(), height),
        };
        if from == to {
            continue;
        }
        let (width, height) = match pass {
            Pass::Rows(width) => (width, source.height()),
            Pass::Columns(height) => (source.width(), height),
        };
        let mut pixels = allocate(RgbImage::bytes(width, height)?)?;
        let windows = Windows::new(filter, from, to)?;
        let fixed = quantize(&windows);
        match pass {
            Pass::Rows(_) => resample_rows(source, &windows, &fixed, &mut pixels),
            Pass::Columns(_) => resample_columns(source, &windows, &fixed, &mut pixels),
        }
        resized = Some(RgbImage::new(width, height, pixels)?);
    }
    Ok(resized.unwrap_or_else(|| image.clone()))
}

/// Weights as integers: `value / 2^fraction_bits`.
struct FixedPoint {
    weights: Vec<i32>,
    fraction_bits: u32,
}

impl FixedPoint {
    /// Uses 32-bit sums of 8-bit samples, less two bits for weights that sum to more than one.
    fn pillow(windows: &Windows) -> Self {
        Self::with_bits(windows, 32 - 8 - 2)
    }

    /// Uses as many bits as possible with the largest weight in 16 bits.
    fn torchvision(windows: &Windows) -> Self {
        let largest = windows.weights.iter().copied().fold(0.0, f64::max);
        let fits = |bits: u32| 0.5 + largest * f64::from(1u32 << bits) < f64::from(1u32 << 15);
        let bits = (0..22).take_while(|&bits| fits(bits + 1)).count() as u32;
        Self::with_bits(windows, bits)
    }

    fn with_bits(windows: &Windows, fraction_bits: u32) -> Self {
        let one = f64::from(1u32 << fraction_bits);
        let quantize = |&weight: &f64| (weight * one + 0.5f64.copysign(weight)) as i32;
        Self {
            weights: windows.weights.iter().map(quantize).collect(),
            fraction_bits,
        }
    }

    /// Iterates over first sample and weights of every window.
    fn windows<'a>(&'a self, windows: &'a Windows) -> impl Iterator<Item = (usize, &'a [i32])> {
        let weights = self.weights.chunks_exact(windows.stride);
        let bounds = windows.bounds.iter();
        bounds
            .zip(weights)
            .map(|(&(first, len), weights)| (first, &weights[..len]))
    }

    /// Returns the initial sum, which makes the shift round.
    fn half(&self) -> i32 {
        (1 << self.fraction_bits) >> 1
    }

    fn round(&self, sum: i32) -> u8 {
        (sum >> self.fraction_bits).clamp(0, 255) as u8
    }
}

/// Appends every row, resampled.
fn resample_rows(image: &RgbImage, windows: &Windows, fixed: &FixedPoint, pixels: &mut Vec<u8>) {
    for y in 0..image.height() {
        let row = image.row(y);
        for (first, weights) in fixed.windows(windows) {
            let mut sums = [fixed.half(); 3];
            for (pixel, &weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(sample);
                }
            }
            pixels.extend(sums.map(|sum| fixed.round(sum)));
        }
    }
}

/// Appends the rows of all resampled columns.
fn resample_columns(image: &RgbImage, windows: &Windows, fixed: &FixedPoint, pixels: &mut Vec<u8>) {
    let mut sums = vec![0i32; image.width() * 3];
    for (first, weights) in fixed.windows(windows) {
        sums.fill(fixed.half());
        for (i, &weight) in weights.iter().enumerate() {
            for (sum, &sample) in sums.iter_mut().zip(image.row(first + i)) {
                *sum += weight * i32::from(sample);
            }
        }
        pixels.extend(sums.iter().map(|&sum| fixed.round(sum)));
    }
}
