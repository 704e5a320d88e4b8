//! Bicubic interpolation of float planes without antialiasing, matching PyTorch.

use super::error::{PreprocessError, allocate};
use super::image::RgbImage;

/// Coefficient of Keys' kernel in PyTorch; 8-bit images are resized with -0.5.
const A: f32 = -0.75;

/// Four neighbors of a sample and their weights.
type Taps = ([usize; 4], [f32; 4]);

/// Resizes planes `[planes, height, width]` to `[planes, new_height, new_width]`, as
/// `torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False)`.
///
/// # Errors
/// If a size is empty or too large, or if `values` does not hold whole planes.
pub fn bicubic(
    values: &[f32],
    (height, width): (usize, usize),
    (new_height, new_width): (usize, usize),
) -> Result<Vec<f32>, PreprocessError> {
    let plane = RgbImage::bytes(width, height)? / 3;
    let new_plane = RgbImage::bytes(new_width, new_height)? / 3;
    if !values.len().is_multiple_of(plane) {
        return Err(PreprocessError::PixelCount {
            width,
            height,
            found: values.len(),
            expected: values.len().div_ceil(plane) * plane,
        });
    }
    let mut resized = allocate((values.len() / plane).saturating_mul(new_plane))?;
    let columns: Vec<Taps> = (0..new_width).map(|x| taps(x, width, new_width)).collect();
    for plane in values.chunks_exact(plane) {
        for y in 0..new_height {
            let (rows, row_weights) = taps(y, height, new_height);
            let rows = rows.map(|row| &plane[row * width..][..width]);
            resized.extend(columns.iter().map(|(at, weights)| {
                let row = |row: &[f32]| weighted(at.map(|x| row[x]), weights);
                weighted(rows.map(row), &row_weights)
            }));
        }
    }
    Ok(resized)
}

fn weighted(samples: [f32; 4], weights: &[f32; 4]) -> f32 {
    let products = samples.iter().zip(weights).map(|(s, w)| s * w);
    products.sum()
}

/// Returns the taps of output sample `output`; positions beyond the edge use the edge sample.
fn taps(output: usize, inputs: usize, outputs: usize) -> Taps {
    let scale = inputs as f32 / outputs as f32;
    let position = scale * (output as f32 + 0.5) - 0.5;
    let first = position.floor().min((inputs - 1) as f32);
    let t = (position - first).clamp(0.0, 1.0);
    let last = inputs as isize - 1;
    let at = [-1, 0, 1, 2].map(|i| (first as isize + i).clamp(0, last) as usize);
    (
        at,
        [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)],
    )
}

/// Evaluates the kernel at distances up to 1.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// Evaluates the kernel at distances from 1 to 2.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
