//! Products with float weights.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::load::load_halves;
use crate::cpu::Strided;
use crate::element::Element;
use crate::format::{FloatFormat, PANEL};
use crate::simd::{float_rows, float_tile, matmul};
use half::f16;
use std::arch::aarch64::*;

/// Loads 4 numbers as single precision.
///
/// # Safety
/// 4 numbers must be readable at `numbers`, which need not be aligned.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load<T: Element>(numbers: *const T) -> float32x4_t {
    // SAFETY: as promised by the caller.
    unsafe {
        if T::HALF {
            vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(numbers.cast())))
        } else {
            vld1q_f32(numbers.cast())
        }
    }
}

/// Loads 8 numbers as single precision.
///
/// # Safety
/// 8 numbers must be readable at `numbers`, which need not be aligned.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_row<T: Element>(numbers: *const T) -> [float32x4_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe {
        if T::HALF {
            load_halves(numbers.cast())
        } else {
            let numbers = numbers.cast::<f32>();
            [vld1q_f32(numbers), vld1q_f32(numbers.add(4))]
        }
    }
}

/// Multiplies a vector by a number and adds the product to `c`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fma(x: f32, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    vfmaq_n_f32(c, b, x)
}

float_tile! {
    features: "neon",
    vector: float32x4_t,
    lanes: 4,
    zero: vdupq_n_f32(0.0),
    load: load,
    load_floats: vld1q_f32,
    store: vst1q_f32,
    splat: std::convert::identity::<f32>,
    fma: fma,
}
matmul! {
    "neon";
    tile, 4, 16, [1 2 3 4 5 6];
    tile, 2, 8, [1 2 3 4 5 6 7 8];
}
float_rows! {
    features: "neon",
    vector: float32x4_t,
    lanes: 4,
    zero: vdupq_n_f32(0.0),
    load_row: load_row,
    store: vst1q_f32,
    splat: std::convert::identity::<f32>,
    fma: fma,
}
