//! Quantization of weights with scales that minimize the squared error, in which the error of each input
//! can count with a weight of its own: a grid search, refined by least squares.

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

/// Values of a row and group, or a positive weight for each of them.
pub(crate) type Values = [[f32; BLOCK]; GROUP];

/// Weights under which all errors count alike.
pub(crate) const EQUAL: Values = [[1.0; BLOCK]; GROUP];

/// Quantizes a group with the best scales found. The squared error of a value counts with its weight in `w`.
pub(crate) fn fit(format: QuantFormat, x: &Values, w: &Values) -> Fit {
    #[cfg(target_arch = "x86_64")]
    if let Some(_proof) = crate::x86_64::Avx2::detect() {
        // Without FMA, so that the result is that of every other CPU.
        return crate::generic::rows::compiled!("avx2"; (format: QuantFormat, x: &Values, w: &Values) -> Fit =>
            fit_portable(format, x, w));
    }
    fit_portable(format, x, w)
}

/// Candidate scales of a q4 block, given as the quotient of the largest magnitude and the scale. A quotient
/// beyond the range clips the largest weights and represents the others more finely.
const Q4_STEPS: [f32; 13] = [
    10.0, 9.7, 9.4, 9.1, 8.7, 8.3, 7.9, 7.4, 6.9, 10.4, 10.8, 11.3, 11.9,
];
/// Candidate scales of a q8 group, given as in [`Q4_STEPS`].
const Q8_STEPS: [f32; 4] = [127.0, 126.5, 126.0, 125.0];

#[inline(always)]
fn fit_portable(format: QuantFormat, x: &Values, w: &Values) -> Fit {
    match format {
        QuantFormat::Q8 => fit_q8(x, w),
        QuantFormat::Q4 => fit_q4(x, w),
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
fn fit_q8(x: &Values, w: &Values) -> Fit {
    let (x, w) = (x.as_flattened(), w.as_flattened());
    let max = max_abs(x);
    let mut best = (f32::INFINITY, f16::ZERO);
    for steps in Q8_STEPS {
        let (xq, qq) = project(
            QuantFormat::Q8,
            (x, w),
            if max > 0.0 { steps / max } else { 0.0 },
        );
        for scale in [
            half(max / steps),
            half(if qq > 0.0 { xq / qq } else { 0.0 }),
        ] {
            let error = squared_error(QuantFormat::Q8, (x, w), scale.to_f32());
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
/// better of the two sub-block scales around its own scale. The best of them is refined.
#[inline(always)]
fn fit_q4(x: &Values, w: &Values) -> Fit {
    let own: [f32; GROUP] = std::array::from_fn(|b| block_scale(&x[b], &w[b]));
    let top = max_abs(&own);
    let mut best = Scales::default();
    for step in 0..TOP_SUB_SCALES {
        let scale = half(top / (f32::from(MAX_SUB_SCALE) - 0.5 * step as f32));
        let exact = own.map(|own| own * inverse(scale.to_f32()));
        best.improve(x, w, scale, |b| [exact[b].floor(), exact[b].ceil()]);
    }
    best.refine(x, w);
    let mut fit = Fit {
        scale: best.scale,
        sub_scales: best.sub_scales,
        quants: [[0; BLOCK]; GROUP],
    };
    for (b, quants) in fit.quants.iter_mut().enumerate() {
        round_all(QuantFormat::Q4, &x[b], best.of_block(b), quants);
    }
    fit
}

/// Number of group scales tried: the largest block scale is 12, 11.5, .. 8 times the group scale. The
/// half steps suit the other blocks.
const TOP_SUB_SCALES: usize = 9;
/// Largest number of refinements. Few groups improve more often.
const REFINEMENTS: usize = 4;

/// Scales of a q4 group, with the error of rounding to them.
struct Scales {
    error: f32,
    scale: f16,
    sub_scales: [i8; GROUP],
}

impl Default for Scales {
    fn default() -> Self {
        Self {
            error: f32::INFINITY,
            scale: f16::ZERO,
            sub_scales: [0; GROUP],
        }
    }
}

impl Scales {
    fn of_block(&self, b: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.sub_scales[b])
    }

    /// Takes a group scale if it is better with the best of the sub-block scales proposed for each block.
    #[inline(always)]
    fn improve<const N: usize>(
        &mut self,
        x: &Values,
        w: &Values,
        scale: f16,
        proposed: impl Fn(usize) -> [f32; N],
    ) -> bool {
        let limit = f32::from(MAX_SUB_SCALE);
        let (mut error, mut sub_scales) = (0.0, [0; GROUP]);
        for b in 0..GROUP {
            let mut best = (f32::INFINITY, 0);
            for sub_scale in proposed(b) {
                let sub_scale = sub_scale.max(-limit).min(limit);
                let values = (&x[b][..], &w[b][..]);
                let error = squared_error(QuantFormat::Q4, values, sub_scale * scale.to_f32());
                if error < best.0 {
                    best = (error, sub_scale as i8);
                }
            }
            error += best.0;
            sub_scales[b] = best.1;
        }
        let better = error < self.error;
        if better {
            *self = Self {
                error,
                scale,
                sub_scales,
            };
        }
        better
    }

    /// Alternates between the group scale that is best for the quants and the sub-block scales that are best
    /// for it, while the error falls.
    #[inline(always)]
    fn refine(&mut self, x: &Values, w: &Values) {
        for _ in 0..REFINEMENTS {
            let (mut xq, mut qq) = (0.0, 0.0);
            for b in 0..GROUP {
                let inverse = inverse(self.of_block(b));
                let sums = project(QuantFormat::Q4, (&x[b], &w[b]), inverse);
                let sub_scale = f32::from(self.sub_scales[b]);
                xq += sub_scale * sums.0;
                qq += sub_scale * sub_scale * sums.1;
            }
            if qq <= 0.0 {
                return;
            }
            let near = self.sub_scales.map(f32::from);
            let scale = half(xq / qq);
            if !self.improve(x, w, scale, |b| [near[b] - 1.0, near[b], near[b] + 1.0]) {
                return;
            }
        }
    }
}

/// The scale that minimizes the squared error of a q4 block, among those tried.
#[inline(always)]
fn block_scale(x: &[f32; BLOCK], w: &[f32; BLOCK]) -> f32 {
    let max = max_abs(x);
    if max == 0.0 {
        return 0.0;
    }
    // The best scale for given quants is sum(w x q) / sum(w q^2), with the error
    // sum(w x^2) - sum(w x q)^2 / sum(w q^2). The range is asymmetric, so both signs are tried.
    let mut best = (-1.0, 0.0);
    for sign in [-1.0, 1.0] {
        for steps in Q4_STEPS {
            try_scale(x, w, sign * steps / max, &mut best);
        }
    }
    // The quants that are nearest with the best scale may have an even better one.
    try_scale(x, w, inverse(best.1), &mut best);
    best.1
}

/// Takes the best scale for the quants of the given reciprocal, if its gain is larger than the best so far.
#[inline(always)]
fn try_scale(x: &[f32; BLOCK], w: &[f32; BLOCK], inverse: f32, best: &mut (f32, f32)) {
    let (xq, qq) = project(QuantFormat::Q4, (x, w), inverse);
    let gain = xq * xq / qq;
    if gain > best.0 {
        *best = (gain, xq / qq);
    }
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

/// `sum(w x q)` and `sum(w q^2)` of the quants `q` for the reciprocal of a scale.
#[inline(always)]
fn project(format: QuantFormat, (x, w): (&[f32], &[f32]), inverse: f32) -> (f32, f32) {
    let (mut xq, mut qq) = ([0f32; 8], [0f32; 8]);
    for (x, w) in x.chunks_exact(8).zip(w.chunks_exact(8)) {
        for lane in 0..8 {
            let q = round_scaled(format, x[lane], inverse);
            let weighted = w[lane] * q;
            xq[lane] += x[lane] * weighted;
            qq[lane] += q * weighted;
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

/// Weighted squared error of rounding to the nearest quants.
#[inline(always)]
fn squared_error(format: QuantFormat, (x, w): (&[f32], &[f32]), scale: f32) -> f32 {
    let inverse = inverse(scale);
    let mut lanes = [0f32; 8];
    for (x, w) in x.chunks_exact(8).zip(w.chunks_exact(8)) {
        for lane in 0..8 {
            let error = round_scaled(format, x[lane], inverse) * scale - x[lane];
            lanes[lane] += w[lane] * error * error;
        }
    }
    lanes.iter().sum()
}
