//! Elementary functions, written so that the compiler vectorizes loops over them.

/// `a * b + c`, fused if the instruction set has a fused multiply-add (`FMA`).
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 1.5 * 2^23. Adding it to a small float rounds to the nearest integer and leaves that integer in the
/// low bits of the sum.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// `e^x` to a relative error of 3e-7. 0 below -87.3, where the result would be subnormal; infinite above
/// 88.3; NaN for NaN.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    let y = exp_below_88::<FMA>(x);
    if x > 88.3 { f32::INFINITY } else { y }
}

/// [`exp`] for `x` up to 88.3.
///
/// Decomposes `x = n ln 2 + r` with `|r| <= ln 2 / 2` and approximates `e^r` by a minimax polynomial of
/// degree 6.
#[inline(always)]
pub(super) fn exp_below_88<const FMA: bool>(x: f32) -> f32 {
    // ln 2 as a sum; products of the first part with |n| < 2^8 are exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Coefficients of (e^r - 1 - r) / r^2 by the Remez algorithm; relative error of e^r: 3e-9.
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

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Error function to an absolute error of 3e-7 (Abramowitz & Stegun 1964, formula 7.1.26: 1.5e-7, plus
/// rounding).
#[inline(always)]
pub(super) fn erf<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / fma::<FMA>(0.327_591_1, a, 1.0);
    let p = fma::<FMA>(t, 1.061_405_4, -1.453_152_1);
    let p = fma::<FMA>(t, p, 1.421_413_8);
    let p = fma::<FMA>(t, p, -0.284_496_72);
    let p = fma::<FMA>(t, p, 0.254_829_6);
    let y = 1.0 - p * t * exp::<FMA>(-a * a);
    y.copysign(x)
}
