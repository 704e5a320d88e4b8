//! Portable kernels. Every fast version is tested against them.
//!
//! The functions on rows are written so that the compiler vectorises them, and are compiled again for each
//! instruction set by [`row_kernels`]. `FMA` says whether that set has a fused multiply-add: without one,
//! `mul_add` would call a library function.

// Lanes are indexed side by side.
#![allow(clippy::needless_range_loop)]

use crate::activation::Activation;
use crate::cpu::{ActivationCode, Isa, Kernels, Panels, Strided, Tile};
use crate::element::Element;
use crate::format::{BLOCK, Format, GROUP, MatrixShape, PANEL, half_at, quant_at, single_at};
use half::f16;
use std::ops::Range;

/// Partial sums of a reduction. Fixed, so that the order of additions is the same for every instruction set.
const LANES: usize = 16;

/// Portable code, compiled for the target's baseline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generic;

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 1.5 * 2^23: adding it rounds a small float to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x` to a relative error of 3e-7: 0 below -87.3 (where it would be subnormal), infinite above 88.3; NaN stays NaN.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    let y = exp_below_88::<FMA>(x);
    if x > 88.3 { f32::INFINITY } else { y }
}

/// [`exp`] where `x` is known to be no larger than 88.3.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, and a minimax polynomial of degree 6 for `e^r`.
#[inline(always)]
fn exp_below_88<const FMA: bool>(x: f32) -> f32 {
    // ln 2 in two parts; products of the first with |n| < 2^8 are exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Of (e^r - 1 - r) / r^2, found with Remez' algorithm for the relative error of e^r: 3e-9.
    const P: [f32; 5] = [
        0.499_999_94,
        0.166_665_2,
        0.041_668_393,
        0.008_368_781,
        0.001_381_446_7,
    ];
    let t = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let p = fma::<FMA>(r, P[4], P[3]);
    let p = fma::<FMA>(r, p, P[2]);
    let p = fma::<FMA>(r, p, P[1]);
    let p = fma::<FMA>(r, p, P[0]);
    let p = fma::<FMA>(r * r, p, r) + 1.0;
    let scale = f32::from_bits((t.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let y = p * scale;
    if x < -87.3 { 0.0 } else { y }
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The error function to an absolute error of 3e-7 (Abramowitz & Stegun 1964, formula 7.1.26: 1.5e-7, plus rounding).
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / fma::<FMA>(0.327_591_1, a, 1.0);
    let p = fma::<FMA>(t, 1.061_405_4, -1.453_152_1);
    let p = fma::<FMA>(t, p, 1.421_413_8);
    let p = fma::<FMA>(t, p, -0.284_496_72);
    let p = fma::<FMA>(t, p, 0.254_829_6);
    let y = 1.0 - p * t * exp::<FMA>(-a * a);
    y.copysign(x)
}

#[inline(always)]
fn apply<const FMA: bool>(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        // Not `max`, which would turn NaN into 0.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            // 1 + tanh(u) = 2 sigmoid(2 u), and here 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
            let u = 1.595_769 * x * fma::<FMA>(0.044_715 * x, x, 1.0);
            x * sigmoid::<FMA>(u)
        }
        Activation::QuickGelu => x * sigmoid::<FMA>(1.702 * x),
        Activation::Silu => x * sigmoid::<FMA>(x),
    }
}

/// `$body` with the activation as a constant, so that each loop is specialised.
macro_rules! for_activation {
    ($activation:expr, $name:ident => $body:expr) => {
        match $activation {
            Activation::None => {
                const $name: Activation = Activation::None;
                $body
            }
            Activation::Relu => {
                const $name: Activation = Activation::Relu;
                $body
            }
            Activation::Gelu => {
                const $name: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $name: Activation = Activation::GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                const $name: Activation = Activation::QuickGelu;
                $body
            }
            Activation::Silu => {
                const $name: Activation = Activation::Silu;
                $body
            }
        }
    };
}

#[inline(always)]
pub(crate) fn activate<const FMA: bool>(activation: Activation, x: &mut [f32]) {
    for_activation!(activation, A => for x in x { *x = apply::<FMA>(A, *x) })
}

#[inline(always)]
pub(crate) fn gated<const FMA: bool>(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) {
    assert!(
        gate.len() == out.len() && up.len() == out.len(),
        "gate, up and output"
    );
    for_activation!(activation, A => for i in 0..out.len() { out[i] = apply::<FMA>(A, gate[i]) * up[i] })
}

/// The sum that `add(sum, x)` makes over all elements, in [`LANES`] interleaved partial sums.
#[inline(always)]
fn reduce(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = add(lanes[i], x[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *x);
    }
    fold(lanes, |a, b| a + b)
}

/// Combines the lanes, halves first.
#[inline(always)]
fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut eight = [0f32; 8];
    for i in 0..8 {
        eight[i] = combine(lanes[i], lanes[i + 8]);
    }
    let mut four = [0f32; 4];
    for i in 0..4 {
        four[i] = combine(eight[i], eight[i + 4]);
    }
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}

#[inline(always)]
pub(crate) fn rms_norm<const FMA: bool>(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
    assert!(
        x.len() == out.len() && gamma.len() == out.len(),
        "x, gamma and output"
    );
    let squares = reduce(x, |sum, x| fma::<FMA>(x, x, sum));
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
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
    let scale = 1.0 / (squares / len as f32 + eps).sqrt();
    for i in 0..len {
        out[i] = fma::<FMA>((x[i] - mean) * scale, gamma[i], beta[i]);
    }
}

#[inline(always)]
pub(crate) fn rotate<const FMA: bool>(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
    let len = low.len();
    assert!(
        high.len() == len && cos.len() == len && sin.len() == len,
        "halves, cos and sin"
    );
    for i in 0..len {
        let (x, y) = (low[i], high[i]);
        low[i] = fma::<FMA>(x, cos[i], -(y * sin[i]));
        high[i] = fma::<FMA>(y, cos[i], x * sin[i]);
    }
}

#[inline(always)]
pub(crate) fn softmax<const FMA: bool>(s: &mut [f32]) -> (f32, f32) {
    let max = largest(s);
    let mut lanes = [0f32; LANES];
    let (whole, rest) = s.as_chunks_mut::<LANES>();
    for s in whole {
        for i in 0..LANES {
            s[i] = exp_below_88::<FMA>(s[i] - max);
            lanes[i] += s[i];
        }
    }
    if !rest.is_empty() {
        // As a whole chunk, with elements that add nothing.
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

/// The largest element, leaving NaN out unless there is nothing else above -inf.
#[inline(always)]
fn largest(s: &[f32]) -> f32 {
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

#[inline(always)]
pub(crate) fn widen(halves: &[u8], out: &mut [f32]) {
    assert_eq!(halves.len(), 2 * out.len(), "two bytes per number");
    for (i, out) in out.iter_mut().enumerate() {
        *out = half_at(halves, i).to_f32();
    }
}

#[inline(always)]
pub(crate) fn quantize(
    code: ActivationCode,
    x: &[f32],
    quants: &mut [u8],
    scales: &mut [f32],
    offsets: &mut [i32],
    step: usize,
) -> i32 {
    let mut total = 0;
    for (g, x) in x.chunks(GROUP * BLOCK).enumerate() {
        let mut padded = [0f32; GROUP * BLOCK];
        let blocks = x.len().div_ceil(BLOCK);
        let x = if let Ok(whole) = x.try_into() {
            whole
        } else {
            padded[..x.len()].copy_from_slice(x);
            &padded
        };
        let (inverse, scale) = group_scale(code.limit, x);
        scales[g * step] = scale;
        let (x, _) = x.as_chunks::<BLOCK>();
        for (b, x) in (g * GROUP..).zip(&x[..blocks]) {
            let quants: &mut [u8; BLOCK] = (&mut quants[b * step * BLOCK..][..BLOCK])
                .try_into()
                .expect("32 bytes");
            let sum = quantize_block(code.bias, inverse, x, quants);
            total += sum;
            let offset = sum * code.offset;
            offsets[b * step] = if code.pairs {
                offset & 0xffff | offset << 16
            } else {
                offset
            };
        }
    }
    total
}

/// What to multiply a group's activations with to quantize them, and its reciprocal.
#[inline(always)]
fn group_scale(limit: f32, x: &[f32; GROUP * BLOCK]) -> (f32, f32) {
    // The bits of a magnitude compare like the magnitude, and NaN is above everything.
    let mut max = 0u32;
    for x in x {
        max = max.max(x.to_bits() & 0x7fff_ffff);
    }
    let max = f32::from_bits(max);
    // Below, the reciprocal would overflow; such a group is as good as zero.
    if max < 1e-36 {
        (0.0, 0.0)
    } else {
        (limit / max, max / limit)
    }
}

/// Quantizes one block; returns the sum of its quants.
#[inline(always)]
fn quantize_block(bias: u8, inverse: f32, x: &[f32; BLOCK], quants: &mut [u8; BLOCK]) -> i32 {
    let mut sum = 0;
    for (quant, x) in quants.iter_mut().zip(x) {
        // NaN and infinity give some byte: their group's scale is not finite either.
        let q = (x * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits()) as i8;
        sum += i32::from(q);
        *quant = (q as u8).wrapping_add(bias);
    }
    sum
}

/// The products with one token, each output a chain in the order of the inputs.
#[inline(always)]
pub(crate) fn float_gemv<const FMA: bool>(
    format: Format,
    panels: &[u8],
    panel_bytes: usize,
    x: &[f32],
    acc: &mut [f32],
) {
    for (acc, panel) in acc
        .chunks_exact_mut(PANEL)
        .zip(panels.chunks_exact(panel_bytes))
    {
        for (i, x) in x.iter().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = i * PANEL + r;
                let w = match format {
                    Format::F16 => half_at(panel, at).to_f32(),
                    _ => single_at(panel, at),
                };
                *acc = fma::<FMA>(w, *x, *acc);
            }
        }
    }
}

#[inline(always)]
pub(crate) fn matmul<const FMA: bool, T: Element>(
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_, T>,
    add: bool,
    c: &mut [f32],
    c_stride: usize,
) {
    for i in 0..m {
        let a = &a.data[i * a.stride..][..k];
        for j in (0..n).step_by(PANEL) {
            let c: &mut [f32; PANEL] = (&mut c[i * c_stride + j..][..PANEL])
                .try_into()
                .expect("8 columns");
            let mut sums = if add { *c } else { [0.0; PANEL] };
            for (p, a) in a.iter().enumerate() {
                let b: &[T; PANEL] = b.data[p * b.stride + j..][..PANEL]
                    .try_into()
                    .expect("8 columns");
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = fma::<FMA>(*a, b.to_f32(), *sum);
                }
            }
            *c = sums;
        }
    }
}

/// Defines the methods of [`Kernels`] that work on rows by calling this module's functions, compiled with
/// `$features` (`#[target_feature(..)]` or nothing).
macro_rules! row_kernels {
    ($fma:literal $(, $features:literal)?) => {
        fn quantize(
            &self,
            code: ActivationCode,
            x: &[f32],
            quants: &mut [u8],
            scales: &mut [f32],
            offsets: &mut [i32],
            step: usize,
        ) -> i32 {
            $crate::generic::compiled!($($features)?; (code: ActivationCode, x: &[f32], quants: &mut [u8],
                scales: &mut [f32], offsets: &mut [i32], step: usize) -> i32 =>
                $crate::generic::quantize(code, x, quants, scales, offsets, step))
        }

        fn softmax(&self, s: &mut [f32]) -> (f32, f32) {
            $crate::generic::compiled!($($features)?; (s: &mut [f32]) -> (f32, f32) => $crate::generic::softmax::<$fma>(s))
        }

        fn merge(&self, acc: &mut [f32], alpha: f32, x: &[f32], beta: f32) {
            $crate::generic::compiled!($($features)?; (acc: &mut [f32], alpha: f32, x: &[f32], beta: f32) =>
                $crate::generic::merge::<$fma>(acc, alpha, x, beta))
        }

        fn activate(&self, activation: Activation, x: &mut [f32]) {
            $crate::generic::compiled!($($features)?; (activation: Activation, x: &mut [f32]) =>
                $crate::generic::activate::<$fma>(activation, x))
        }

        fn gated(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
            $crate::generic::compiled!($($features)?; (activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) =>
                $crate::generic::gated::<$fma>(activation, gate, up, out))
        }

        fn rms_norm(&self, x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
            $crate::generic::compiled!($($features)?; (x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) =>
                $crate::generic::rms_norm::<$fma>(x, gamma, eps, out))
        }

        fn layer_norm(&self, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
            $crate::generic::compiled!($($features)?; (x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) =>
                $crate::generic::layer_norm::<$fma>(x, gamma, beta, eps, out))
        }

        fn rotate(&self, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
            $crate::generic::compiled!($($features)?; (low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) =>
                $crate::generic::rotate::<$fma>(low, high, cos, sin))
        }
    };
}

/// Calls `$body` in a function compiled with the given target features.
macro_rules! compiled {
    (; ($($name:ident: $type:ty),*) $(-> $result:ty)? => $body:expr) => { $body };
    ($features:literal; ($($name:ident: $type:ty),*) $(-> $result:ty)? => $body:expr) => {{
        #[target_feature(enable = $features)]
        fn compiled($($name: $type),*) $(-> $result)? { $body }
        // SAFETY: `Isa::find` hands these kernels out only on machines that have the features.
        #[allow(unsafe_code)]
        unsafe { compiled($($name),*) }
    }};
}
pub(crate) use {compiled, row_kernels};

impl Kernels for Generic {
    fn isa(&self) -> Isa {
        Isa::Generic
    }

    fn code(&self, _: Format) -> ActivationCode {
        ActivationCode {
            limit: 127.0,
            bias: 0,
            offset: 0,
            pairs: false,
        }
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let Panels { format, blocks, .. } = panels;
        let (count, tokens) = (panels.count(), tile.tokens);
        let shape = MatrixShape::new(format, count * PANEL, blocks * BLOCK);
        let (levels, quants) = shape.level_and_quant_offsets();
        for (p, panel) in panels.bytes.chunks_exact(panels.panel_bytes).enumerate() {
            for (g, r) in range.clone().flat_map(|g| (0..PANEL).map(move |r| (g, r))) {
                let scale = half_at(panel, g * PANEL + r).to_f32();
                let group = g * GROUP..blocks.min((g + 1) * GROUP);
                let mut w = [[0i32; BLOCK]; GROUP];
                for (b, w) in group.clone().zip(&mut w) {
                    let block = &panel[quants + b * format.block_bytes()..][..format.block_bytes()];
                    let level = match format {
                        Format::Q4 => panel[levels + b * PANEL + r] as i8,
                        _ => 1,
                    };
                    for (i, w) in w.iter_mut().enumerate() {
                        *w = i32::from(quant_at(format, block, r, i)) * i32::from(level);
                    }
                }
                for t in 0..tokens {
                    let mut sum = 0;
                    for (b, w) in group.clone().zip(&w) {
                        let x = &tile.quants[(b * tokens + t) * BLOCK..][..BLOCK];
                        for (w, x) in w.iter().zip(x) {
                            sum += w * i32::from(*x as i8);
                        }
                    }
                    let scale = scale * tile.scales[g * tokens + t];
                    acc[(t * count + p) * PANEL + r] += sum as f32 * scale;
                }
            }
        }
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        add: bool,
        c: &mut [f32],
        c_stride: usize,
    ) {
        matmul::<false, f32>(size, a, b, add, c, c_stride)
    }

    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        matmul::<false, f16>(size, a, b, false, c, c_stride)
    }

    fn float_gemv(
        &self,
        format: Format,
        panels: &[u8],
        panel_bytes: usize,
        x: &[f32],
        acc: &mut [f32],
    ) {
        acc.fill(0.0);
        float_gemv::<false>(format, panels, panel_bytes, x, acc)
    }

    fn widen(&self, halves: &[u8], out: &mut [f32]) {
        widen(halves, out)
    }

    row_kernels!(false);
}
