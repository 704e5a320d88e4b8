//! Products with quantized weights without `sdot` (Cortex-A72).
//!
//! `smlal` multiplies 2 rows by 4 activations into 16 bits. A block of q4 fits 16 bits: 8 products of at most
//! 10 * 127 are 10160. In q8 two products of 127 * 127 fit, and are then added to 32 bits.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::load::{
    load_floats, load_halves, load_q8, load_sub_scales, no_sub_scales, prefetch, prefetch_header,
    repeat4, scaled, store_floats, unpack_q4,
};
use super::loops::{many_tokens, one_token, panels};
use crate::cpu::{ActivationScheme, TILE_TOKENS};
use crate::format::{BLOCK, QuantFormat};
use crate::operands::Operands;
use std::arch::aarch64::*;

/// Quantization of activations for these products.
pub(super) fn scheme(format: QuantFormat) -> ActivationScheme {
    match format {
        QuantFormat::Q8 | QuantFormat::Q4 => ActivationScheme::signed(0),
    }
}

one_token!(
    q4_one_token,
    "neon",
    128,
    unpack_q4,
    |group, w, operands: &Operands| { add_q4(group, w, operands.x, load_sub_scales(operands)) }
);
one_token!(
    q8_one_token,
    "neon",
    256,
    load_q8,
    |group, w, operands: &Operands| { add_q8(group, w, operands.x, no_sub_scales(operands)) }
);
many_tokens!(
    q4_many_tokens,
    "neon",
    128,
    unpack_q4,
    load_sub_scales,
    add_q4
);
many_tokens!(q8_many_tokens, "neon", 256, load_q8, no_sub_scales, add_q8);
panels!(q4, "neon", q4_one_token, q4_many_tokens);
panels!(q8, "neon", q8_one_token, q8_many_tokens);

/// Adds the products of a q4 block and a token.
///
/// # Safety
/// 32 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_q4(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    x: *const u8,
    sub_scales: [int32x4_t; 2],
) -> [int32x4_t; 2] {
    // Each vector has the sums of two rows.
    let mut sums = [vdupq_n_s16(0); 4];
    for i in 0..8 {
        // SAFETY: as promised by the caller.
        let x = unsafe { repeat4(x.add(4 * i)) };
        for half in 0..2 {
            let w = w[2 * i + half];
            sums[2 * half] = vmlal_s8(sums[2 * half], vget_low_s8(w), vget_low_s8(x));
            sums[2 * half + 1] = vmlal_high_s8(sums[2 * half + 1], w, x);
        }
    }
    let rows =
        |half: usize| vpaddq_s32(vpaddlq_s16(sums[2 * half]), vpaddlq_s16(sums[2 * half + 1]));
    [
        vmlaq_s32(group[0], rows(0), sub_scales[0]),
        vmlaq_s32(group[1], rows(1), sub_scales[1]),
    ]
}

/// Adds the products of a q8 block and a token.
///
/// # Safety
/// 32 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_q8(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    x: *const u8,
    _: [int32x4_t; 2],
) -> [int32x4_t; 2] {
    // Each vector has the sums of two rows.
    let mut sums = [vdupq_n_s32(0); 4];
    for i in (0..8).step_by(2) {
        // SAFETY: as promised by the caller.
        let (x0, x1) = unsafe { (repeat4(x.add(4 * i)), repeat4(x.add(4 * i + 4))) };
        for half in 0..2 {
            let (w0, w1) = (w[2 * i + half], w[2 * i + 2 + half]);
            let low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
            let low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
            sums[2 * half] = vpadalq_s16(sums[2 * half], low);
            let high = vmlal_high_s8(vmull_high_s8(w0, x0), w1, x1);
            sums[2 * half + 1] = vpadalq_s16(sums[2 * half + 1], high);
        }
    }
    [
        vaddq_s32(group[0], vpaddq_s32(sums[0], sums[1])),
        vaddq_s32(group[1], vpaddq_s32(sums[2], sums[3])),
    ]
}
