//! The gated delta rule.

use super::float::fma;
use crate::cpu::DeltaSteps;
use crate::delta_rule::COLUMNS;
use crate::generic::delta_rule::{Added, Next, Row, passes};
use crate::simd::delta_rule;
use std::arch::aarch64::*;

/// Multiplies a vector by a number.
#[inline]
#[target_feature(enable = "neon")]
fn mul(x: f32, b: float32x4_t) -> float32x4_t {
    vmulq_n_f32(b, x)
}

delta_rule! {
    features: "neon",
    vector: float32x4_t,
    lanes: 4,
    zero: vdupq_n_f32(0.0),
    load: vld1q_f32,
    store: vst1q_f32,
    splat: std::convert::identity::<f32>,
    fma: fma,
    mul: mul,
}
