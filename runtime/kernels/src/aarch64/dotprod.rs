//! Products with quantized weights by `sdot` (Cortex-A76): 4 rows times 4 activations per instruction, 16
//! products, with the activations selected by lane.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::load::{
    expand_q4, load_floats, load_halves, load_q8, load_sub_scales, prefetch, prefetch_header,
    scaled, store_floats, unpack_q4,
};
use super::loops::{one_token, panels};
use crate::cpu::ActivationScheme;
use crate::format::{BLOCK, GROUP, PANEL, QuantFormat};
use crate::operands::Operands;
use std::arch::aarch64::*;
use std::arch::asm;

/// Quantization of activations for these products.
pub(super) fn scheme(format: QuantFormat) -> ActivationScheme {
    match format {
        QuantFormat::Q8 | QuantFormat::Q4 => ActivationScheme::signed(0),
    }
}

one_token!(q4_one_token, "neon,dotprod", 128, unpack_q4, add_q4);
one_token!(q8_one_token, "neon,dotprod", 256, load_q8, add_q8);
panels!(q4, "neon,dotprod", q4_one_token, many_tokens::<true>);
panels!(q8, "neon,dotprod", q8_one_token, many_tokens::<false>);

/// Adds to each of four sums the products of four weights and the activations in 32-bit lane `LANE`. The
/// intrinsic `vdotq_laneq_s32` is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: i32>(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers, of a feature that this function requires.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Adds the products of a q4 block and a token.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_q4(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    operands: &Operands,
) -> [int32x4_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe {
        let sums = add_dotprod([vdupq_n_s32(0); 2], w, operands.x);
        let sub_scales = load_sub_scales(operands);
        [
            vmlaq_s32(group[0], sums[0], sub_scales[0]),
            vmlaq_s32(group[1], sums[1], sub_scales[1]),
        ]
    }
}

/// Adds the products of a q8 block and a token.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_q8(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    operands: &Operands,
) -> [int32x4_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe { add_dotprod(group, w, operands.x) }
}

/// Adds the products of a block and a token.
///
/// # Safety
/// 32 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_dotprod(
    mut sums: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    x: *const u8,
) -> [int32x4_t; 2] {
    // SAFETY: as promised by the caller.
    let x = unsafe { [vld1q_s8(x.cast()), vld1q_s8(x.add(16).cast())] };
    for part in 0..2 {
        for half in 0..2 {
            let w = |i: usize| w[8 * part + 2 * i + half];
            sums[half] = sdot::<0>(sums[half], w(0), x[part]);
            sums[half] = sdot::<1>(sums[half], w(1), x[part]);
            sums[half] = sdot::<2>(sums[half], w(2), x[part]);
            sums[half] = sdot::<3>(sums[half], w(3), x[part]);
        }
    }
    sums
}

/// Multiplies a panel by a tile, group by group. The sums of six tokens stay in registers. The weights of the
/// group, in q4 expanded to q8 (`sub_scale * level`), are read from the L1 cache.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn many_tokens<const Q4: bool>(mut operands: Operands) {
    let mut expanded = [[vdupq_n_s8(0); 16]; GROUP];
    // SAFETY: as promised by the caller.
    unsafe {
        while operands.blocks > 0 {
            let first = operands;
            let blocks = operands.group_blocks();
            for expanded in &mut expanded[..blocks] {
                if Q4 {
                    prefetch::<128>(operands.ahead(1));
                    *expanded = expand_q4(&operands);
                } else {
                    prefetch::<256>(operands.ahead(1));
                }
                operands.advance_block();
            }
            let w = if Q4 {
                expanded.as_ptr().cast()
            } else {
                first.quants.cast()
            };
            let mut t = 0;
            while t + 6 <= first.tokens {
                some_tokens::<6>(&first, t, w, blocks);
                t += 6;
            }
            while t + 2 <= first.tokens {
                some_tokens::<2>(&first, t, w, blocks);
                t += 2;
            }
            if t < first.tokens {
                some_tokens::<1>(&first, t, w, blocks);
            }
            operands.advance_group();
        }
    }
}

/// Multiplies a group of q8 weights by `T` tokens from `first` on.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with at least `first + T` tokens; `w` must be readable for
/// `blocks` blocks of q8.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn some_tokens<const T: usize>(
    operands: &Operands,
    first: usize,
    w: *const i8,
    blocks: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 2]; T];
        let (mut x, mut w) = (operands.x.wrapping_add(first * BLOCK), w);
        for _ in 0..blocks {
            for half in 0..2 {
                let mut inputs = [vdupq_n_s8(0); T];
                for (t, inputs) in inputs.iter_mut().enumerate() {
                    *inputs = vld1q_s8(x.add(t * BLOCK + 16 * half).cast());
                }
                macro_rules! lane {
                    ($lane:literal) => {
                        let w = w.add(128 * half + 32 * $lane);
                        let w = [vld1q_s8(w), vld1q_s8(w.add(16))];
                        for t in 0..T {
                            sums[t][0] = sdot::<$lane>(sums[t][0], w[0], inputs[t]);
                            sums[t][1] = sdot::<$lane>(sums[t][1], w[1], inputs[t]);
                        }
                    };
                }
                lane!(0);
                lane!(1);
                lane!(2);
                lane!(3);
            }
            x = x.wrapping_add(operands.tokens * BLOCK);
            w = w.wrapping_add(BLOCK * PANEL);
        }
        let w_scale = load_halves(operands.scales);
        for (t, sums) in sums.into_iter().enumerate() {
            let acc = operands.acc.add((first + t) * operands.stride);
            let x_scale = *operands.x_scale.add(first + t);
            store_floats(acc, scaled(sums, w_scale, x_scale, load_floats(acc)));
        }
    }
}
