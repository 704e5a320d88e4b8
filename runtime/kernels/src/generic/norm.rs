//! Normalization of a row.

// Slices are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::math::fma;
use super::reduce::reduce;

/// The scale, or NaN if the sum of squares has overflowed: the scale is 0 then, which would turn an
/// overflow into zeros that nobody notices.
#[inline(always)]
fn overflow_to_nan(squares: f32, scale: f32) -> f32 {
    if squares < f32::INFINITY {
        scale
    } else {
        f32::NAN
    }
}

#[inline(always)]
pub(crate) fn rms_norm<const FMA: bool>(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
    assert!(
        x.len() == out.len() && gamma.len() == out.len(),
        "x, gamma and output"
    );
    let squares = reduce(x, |sum, x| fma::<FMA>(x, x, sum));
    let scale = overflow_to_nan(squares, 1.0 / (squares / x.len() as f32 + eps).sqrt());
    for i in 0..out.len() {
        out[i] = x[i] * scale * gamma[i];
    }
}

#[inline(always)]
pub(crate) fn layer_norm<const FMA: bool>(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let len = out.len();
    assert!(
        x.len() == len && gamma.len() == len && beta.len() == len,
        "x, gamma, beta and output"
    );
    let mean = reduce(x, |sum, x| sum + x) / len as f32;
    let squares = reduce(x, |sum, x| fma::<FMA>(x - mean, x - mean, sum));
    let scale = overflow_to_nan(squares, 1.0 / (squares / len as f32 + eps).sqrt());
    for i in 0..len {
        out[i] = fma::<FMA>((x[i] - mean) * scale, gamma[i], beta[i]);
    }
}
