//! Softmax of a row of attention scores, and merging of partial results.

// Lanes are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::math::{exp_below_88, fma};
use super::reduce::{LANES, fold};

#[inline(always)]
pub(crate) fn softmax<const FMA: bool>(s: &mut [f32]) -> (f32, f32) {
    let max = max(s);
    let mut lanes = [0f32; LANES];
    let (whole, rest) = s.as_chunks_mut::<LANES>();
    for s in whole {
        for i in 0..LANES {
            s[i] = exp_below_88::<FMA>(s[i] - max);
            lanes[i] += s[i];
        }
    }
    if !rest.is_empty() {
        // Padded to a whole chunk with -inf, whose exponential is 0.
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        for i in 0..LANES {
            last[i] = exp_below_88::<FMA>(last[i] - max);
            lanes[i] += last[i];
        }
        rest.copy_from_slice(&last[..rest.len()]);
    }
    (max, fold(lanes, |a, b| a + b))
}

/// The largest element. NaN is ignored, unless all other elements are -inf.
#[inline(always)]
fn max(s: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = s.as_chunks::<LANES>();
    for s in whole {
        for i in 0..LANES {
            lanes[i] = if s[i] > lanes[i] { s[i] } else { lanes[i] };
        }
    }
    for (lane, s) in lanes.iter_mut().zip(rest) {
        *lane = if *s > *lane { *s } else { *lane };
    }
    let max = fold(lanes, |a, b| if b > a { b } else { a });
    if max == f32::NEG_INFINITY && s.iter().any(|s| s.is_nan()) {
        f32::NAN
    } else {
        max
    }
}

#[inline(always)]
pub(crate) fn merge<const FMA: bool>(acc: &mut [f32], alpha: f32, x: &[f32], beta: f32) {
    assert_eq!(acc.len(), x.len(), "accumulator and addend");
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc = fma::<FMA>(*acc, alpha, x * beta);
    }
}
