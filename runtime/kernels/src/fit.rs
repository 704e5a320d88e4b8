//! Quantization of weights with scales that minimize the squared error: a grid search, refined by least
//! squares.

use crate::format::{BLOCK, FINE_LEVELS, GROUP, MAX_SUB_SCALE, QuantFormat};
use crate::generic::math::ROUND;
use half::f16;

/// The quantized weights of a row and group.
pub(crate) struct Fit {
    pub(crate) scale: f16,
    /// 1 in formats without sub-block scales.
    pub(crate) sub_scales: [i8; GROUP],
    pub(crate) quants: [[i8; BLOCK]; GROUP],
}

/// Quantizes a group with the best scales found.
pub(crate) fn fit(format: QuantFormat, x: &[[f32; BLOCK]; GROUP]) -> Fit {
    #[cfg(target_arch = "x86_64")]
    if let Some(_proof) = crate::x86_64::Avx2::detect() {
        // Without FMA, so that the result is that of every other CPU.
        return crate::generic::rows::compiled!("avx2"; (format: QuantFormat, x: &[[f32; BLOCK]; GROUP]) -> Fit =>
            fit_portable(format, x));
    }
    fit_portable(format, x)
}

/// Candidate scales of a q4 block, given as the quotient of the largest magnitude and the scale. A quotient
/// beyond the range clips the largest weights and represents the others more finely.
const Q4_STEPS: [f32; 13] = [
    10.0, 9.7, 9.4, 9.1, 8.7, 8.3, 7.9, 7.4, 6.9, 10.4, 10.8, 11.3, 11.9,
];
/// Candidate scales of a q8 group, given as in [`Q4_STEPS`].
const Q8_STEPS: [f32; 4] = [127.0, 126.5, 126.0, 125.0];

#[inline(always)]
fn fit_portable(format: QuantFormat, x: &[[f32; BLOCK]; GROUP]) -> Fit {
    match format {
        QuantFormat::Q8 => fit_q8(x),
        QuantFormat::Q4 => fit_q4(x),
    }
}

/// Largest magnitude.
#[inline(always)]
fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |max, x| max.max(x.abs()))
}

/// Scales below this keep fewer than four bits in half precision.
const COARSE_SCALE: f32 = 16.0 * SMALLEST_SCALE;
/// The smallest positive number in half precision, 2^-24.
const SMALLEST_SCALE: f32 = 5.960_464_5e-8;

/// `x` as a finite half-precision number. The smallest ones are rounded away from zero: too large a scale makes the
/// quants coarser, too small a one cuts the largest weights off, and none at all loses them.
fn half(x: f32) -> f16 {
    let x = match x.abs() < COARSE_SCALE {
        true => (x.abs() / SMALLEST_SCALE).ceil().copysign(x) * SMALLEST_SCALE,
        false => x,
    };
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// Quantizes to q8 with the best of [`Q8_STEPS`], each as it is and refined by least squares.
#[inline(always)]
fn fit_q8(x: &[[f32; BLOCK]; GROUP]) -> Fit {
    let x = x.as_flattened();
    let max = max_abs(x);
    let mut best = (f32::INFINITY, f16::ZERO);
    for steps in Q8_STEPS {
        let (xq, qq) = project(
            QuantFormat::Q8,
            x,
            if max > 0.0 { steps / max } else { 0.0 },
        );
        for scale in [
            half(max / steps),
            half(if qq > 0.0 { xq / qq } else { 0.0 }),
        ] {
            let error = squared_error(QuantFormat::Q8, x, scale.to_f32());
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    let mut fit = Fit {
        scale: best.1,
        sub_scales: [1; GROUP],
        quants: [[0; BLOCK]; GROUP],
    };
    round_all(
        QuantFormat::Q8,
        x,
        best.1.to_f32(),
        fit.quants.as_flattened_mut(),
    );
    fit
}

/// Quantizes to q4. First finds the best scale of each block by itself. Then tries group scales for which
/// the largest of these is represented by one of the largest sub-block scales, where each block takes the
/// better of the two sub-block scales around its own scale.
#[inline(always)]
fn fit_q4(x: &[[f32; BLOCK]; GROUP]) -> Fit {
    let own = x.map(|x| block_scale(&x));
    let top = max_abs(&own);
    let mut best = (f32::INFINITY, f16::ZERO, [0; GROUP]);
    for step in 0..TOP_SUB_SCALES {
        let scale = half(top / (f32::from(MAX_SUB_SCALE) - 0.5 * step as f32));
        let (mut error, mut sub_scales) = (0.0, [0; GROUP]);
        for b in 0..GROUP {
            let (block_error, sub_scale) = sub_scale(&x[b], own[b], scale.to_f32());
            error += block_error;
            sub_scales[b] = sub_scale;
        }
        if error < best.0 {
            best = (error, scale, sub_scales);
        }
    }
    let (_, scale, sub_scales) = best;
    let mut fit = Fit {
        scale,
        sub_scales,
        quants: [[0; BLOCK]; GROUP],
    };
    for b in 0..GROUP {
        let scale = scale.to_f32() * f32::from(sub_scales[b]);
        round_all(QuantFormat::Q4, &x[b], scale, &mut fit.quants[b]);
    }
    fit
}

/// Number of group scales tried: the largest block scale is 12, 11.5, .. 8 times the group scale. The
/// half steps suit the other blocks.
const TOP_SUB_SCALES: usize = 9;

/// Chooses between the two sub-block scales around the block's own scale; returns the smaller squared error
/// and the sub-block scale.
#[inline(always)]
fn sub_scale(x: &[f32; BLOCK], own: f32, scale: f32) -> (f32, i8) {
    let limit = f32::from(MAX_SUB_SCALE);
    let exact = if scale == 0.0 {
        0.0
    } else {
        (own / scale).clamp(-limit, limit)
    };
    let mut best = (f32::INFINITY, 0);
    for sub_scale in [exact.floor(), exact.ceil()] {
        let error = squared_error(QuantFormat::Q4, x, sub_scale * scale);
        if error < best.0 {
            best = (error, sub_scale as i8);
        }
    }
    best
}

/// The scale that minimizes the squared error of a q4 block, among those tried.
#[inline(always)]
fn block_scale(x: &[f32; BLOCK]) -> f32 {
    let max = max_abs(x);
    if max == 0.0 {
        return 0.0;
    }
    // The best scale for given quants is sum(x q) / sum(q^2), with the error
    // sum(x^2) - sum(x q)^2 / sum(q^2). The range is asymmetric, so both signs are tried.
    let (mut best, mut scale) = (-1.0, 0.0);
    for sign in [-1.0, 1.0] {
        for steps in Q4_STEPS {
            let (xq, qq) = project(QuantFormat::Q4, x, sign * steps / max);
            let gain = xq * xq / qq;
            if gain > best {
                (best, scale) = (gain, xq / qq);
            }
        }
    }
    scale
}

/// Rounds `x * inverse` to the nearest quant.
#[inline(always)]
fn round_scaled(format: QuantFormat, x: f32, inverse: f32) -> f32 {
    let (min, max) = format.range();
    let scaled = (x * inverse).max(f32::from(min)).min(f32::from(max));
    match format {
        QuantFormat::Q8 => scaled + ROUND - ROUND,
        QuantFormat::Q4 => {
            let (low, high) = FINE_LEVELS;
            let fine = scaled.max(f32::from(low)).min(f32::from(high));
            // The distance of the outer levels is 2.
            let coarse = (scaled - fine) * 0.5;
            (fine + ROUND - ROUND) + 2.0 * (coarse + ROUND - ROUND)
        }
    }
}

/// `sum(x q)` and `sum(q^2)` of the quants `q` for the reciprocal of a scale.
#[inline(always)]
fn project(format: QuantFormat, x: &[f32], inverse: f32) -> (f32, f32) {
    let (mut xq, mut qq) = ([0f32; 8], [0f32; 8]);
    for x in x.chunks_exact(8) {
        for lane in 0..8 {
            let q = round_scaled(format, x[lane], inverse);
            xq[lane] += x[lane] * q;
            qq[lane] += q * q;
        }
    }
    (xq.iter().sum(), qq.iter().sum())
}

/// The reciprocal of a scale; 0 if it overflows.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Rounds `x / scale` to the nearest quants.
#[inline(always)]
fn round_all(format: QuantFormat, x: &[f32], scale: f32, quants: &mut [i8]) {
    let inverse = inverse(scale);
    for (q, x) in quants.iter_mut().zip(x) {
        *q = round_scaled(format, *x, inverse) as i8;
    }
}

/// Squared error of rounding to the nearest quants.
#[inline(always)]
fn squared_error(format: QuantFormat, x: &[f32], scale: f32) -> f32 {
    let inverse = inverse(scale);
    let mut lanes = [0f32; 8];
    for x in x.chunks_exact(8) {
        for lane in 0..8 {
            let error = round_scaled(format, x[lane], inverse) * scale - x[lane];
            lanes[lane] += error * error;
        }
    }
    lanes.iter().sum()
}
