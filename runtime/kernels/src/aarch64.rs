//! Kernels for AArch64: Advanced SIMD, with and without the dot product instruction.
//!
//! As on x86-64, the products with quantized weights have input `4 i + j` of row `r` in byte `4 r + j` of the pair `i` of
//! a block's 16 registers.
//! - `sdot` (Cortex-A76) multiplies 4 rows by 4 activations, taken from a register by their number: 16 products. With many
//!   tokens it is the sums that stay in registers, 6 tokens by 8 rows, and the weights come from the first cache, q4 as q8
//!   (`level * q`), so that a group has little but `sdot`.
//! - Without it (Cortex-A72), `smlal` multiplies 2 rows by such a group into 16 bits. A block of q4 fits there: 8 products
//!   of at most 15 * 127, and the offset `-2 * sum` in each of a row's four sums, which makes `-8 * sum`: 23368 at most.
//!   Of q8, two products of 127 * 127 fit, and then go to 32 bits.
#![allow(unsafe_code)]
// Arrays of registers are indexed side by side; the operands of a tile are passed one by one to stay in registers.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

use crate::activation::Activation;
use crate::cpu::{ActivationCode, Isa, Kernels, Panels, Strided, TILE_TOKENS, Tile};
use crate::element::Element;
use crate::format::{BLOCK, Format, GROUP, PANEL};
use crate::generic::row_kernels;
use crate::tile::{Operands, check_matmul, row_tiles};
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

/// Advanced SIMD, which every AArch64 has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon;

/// [`Neon`] with `sdot`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonDotprod;

/// The kernels for an instruction set, if it is one of AArch64 and this machine has it.
pub(crate) fn find(isa: Isa) -> Option<&'static dyn Kernels> {
    match isa {
        Isa::Neon => Some(&Neon),
        Isa::NeonDotprod if std::arch::is_aarch64_feature_detected!("dotprod") => {
            Some(&NeonDotprod)
        }
        _ => None,
    }
}

/// Adds to each of four sums the products of four weights with group `LANE` of the activations. (The intrinsic,
/// `vdotq_laneq_s32`, is not stable.)
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

/// The 8 pairs of vectors of a q4 block, as bytes 0..=15.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn unpack_q4(operands: &Operands) -> [int8x16_t; 16] {
    let mut w = [vdupq_n_s8(0); 16];
    for v in 0..4 {
        for half in 0..2 {
            // SAFETY: eight vectors of 16 bytes, as promised by the caller.
            let both = unsafe { vld1q_u8(operands.quants.add(32 * v + 16 * half)) };
            w[4 * v + half] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            w[4 * v + 2 + half] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(both));
        }
    }
    w
}

/// The 8 pairs of vectors of a q4 block, multiplied with their levels.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn expand_q4(operands: &Operands) -> [int8x16_t; 16] {
    // Every level four times.
    let first = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
    // SAFETY: the table is 16 bytes; the rest as promised by the caller.
    let (first, levels, mut w) = unsafe {
        (
            vld1q_u8(first.as_ptr()),
            vld1_s8(operands.levels.cast()),
            unpack_q4(operands),
        )
    };
    let table = vcombine_s8(levels, levels);
    let levels = [
        vqtbl1q_s8(table, first),
        vqtbl1q_s8(table, vaddq_u8(first, vdupq_n_u8(4))),
    ];
    for (i, w) in w.iter_mut().enumerate() {
        *w = vmulq_s8(vsubq_s8(*w, vdupq_n_s8(8)), levels[i % 2]);
    }
    w
}

/// The 8 pairs of vectors of a q8 block.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_q8(operands: &Operands) -> [int8x16_t; 16] {
    let mut w = [vdupq_n_s8(0); 16];
    for (v, w) in w.iter_mut().enumerate() {
        // SAFETY: sixteen vectors of 16 bytes, as promised by the caller.
        *w = unsafe { vld1q_s8(operands.quants.add(16 * v).cast()) };
    }
    w
}

/// The levels of a q4 block's 8 rows.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_levels(operands: &Operands) -> [int32x4_t; 2] {
    // SAFETY: 8 bytes, as promised by the caller.
    let levels = vmovl_s8(unsafe { vld1_s8(operands.levels.cast()) });
    [
        vmovl_s16(vget_low_s16(levels)),
        vmovl_s16(vget_high_s16(levels)),
    ]
}

/// Where the weights have no levels, or have been multiplied with them.
///
/// # Safety
/// Always safe.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn no_levels(_: &Operands) -> [int32x4_t; 2] {
    [vdupq_n_s32(1); 2]
}

/// 8 half-precision numbers.
///
/// # Safety
/// 16 bytes at `halves` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_halves(halves: *const u8) -> [float32x4_t; 2] {
    // SAFETY: as promised by the caller.
    let halves = unsafe { vreinterpretq_u16_u8(vld1q_u8(halves)) };
    let (low, high) = (vget_low_u16(halves), vget_high_u16(halves));
    [
        vcvt_f32_f16(vreinterpret_f16_u16(low)),
        vcvt_f32_f16(vreinterpret_f16_u16(high)),
    ]
}

/// Asks for the cache lines of `BYTES` bytes, into the second cache: they are needed only when the next panel has its
/// turn.
#[inline(always)]
fn prefetch<const BYTES: usize>(address: *const u8) {
    for line in (0..BYTES).step_by(64) {
        let line = address.wrapping_add(line);
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(readonly, nostack, preserves_flags))
        };
    }
}

/// Asks for the levels and scales of a group of a panel that is needed later.
#[inline(always)]
fn prefetch_header(operands: &Operands, panels: usize) {
    for address in operands.header_ahead(panels) {
        prefetch::<64>(address);
    }
}

/// The sums so far plus `sums * (w_scale * x_scale)`, for 8 rows.
#[inline]
#[target_feature(enable = "neon")]
fn scaled(
    sums: [int32x4_t; 2],
    w_scale: [float32x4_t; 2],
    x_scale: f32,
    acc: [float32x4_t; 2],
) -> [float32x4_t; 2] {
    let half = |i: usize| {
        vfmaq_f32(
            acc[i],
            vcvtq_f32_s32(sums[i]),
            vmulq_n_f32(w_scale[i], x_scale),
        )
    };
    [half(0), half(1)]
}

/// 8 floats.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_floats(address: *const f32) -> [float32x4_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe { [vld1q_f32(address), vld1q_f32(address.add(4))] }
}

/// # Safety
/// 8 floats must be writable at `address`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_floats(address: *mut f32, floats: [float32x4_t; 2]) {
    // SAFETY: as promised by the caller.
    unsafe {
        vst1q_f32(address, floats[0]);
        vst1q_f32(address.add(4), floats[1]);
    }
}

/// Defines a module with the products of one format without `sdot`, from `unpack`, the vectors of a block, `levels`, its
/// levels, and `add`, which adds the products of these with the activations at an address, given the token's offset, to the
/// sums of the group.
macro_rules! products {
    ($name:ident, $bytes:literal, $unpack:ident, $levels:ident, $add:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The operands must be as [`Operands::new`] gives them, for `count` panels.
            #[target_feature(enable = "neon")]
            pub(super) unsafe fn panels(operands: Operands, count: usize) {
                // SAFETY: as promised by the caller.
                unsafe {
                    for panel in 0..count {
                        if operands.tokens == 1 {
                            one_token(operands.panel(panel), usize::from(panel + 1 < count));
                        } else {
                            many_tokens(operands.panel(panel));
                        }
                    }
                }
            }

            /// # Safety
            /// The operands must be as [`Operands::new`] gives them.
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn many_tokens(mut operands: Operands) {
                let mut group = [[vdupq_n_s32(0); 2]; TILE_TOKENS];
                // SAFETY: as promised by the caller.
                unsafe {
                    while operands.blocks > 0 {
                        for _ in 0..operands.group_blocks() {
                            prefetch::<$bytes>(operands.ahead(1));
                            let w = $unpack(&operands);
                            let levels = $levels(&operands);
                            for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                                let (x, offset) =
                                    (operands.x.add(BLOCK * t), *operands.x_offset.add(t));
                                *group = $add(*group, &w, x, offset, levels);
                            }
                            operands.advance_block();
                        }
                        let w_scale = load_halves(operands.scales);
                        for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                            let acc = operands.acc.add(t * operands.stride);
                            let x_scale = *operands.x_scale.add(t);
                            store_floats(acc, scaled(*group, w_scale, x_scale, load_floats(acc)));
                            *group = [vdupq_n_s32(0); 2];
                        }
                        operands.advance_group();
                    }
                }
            }

            /// The sums stay in registers. The panel that is needed next is `ahead` panels further on; 0 if none is, because
            /// what others need should not be read here.
            ///
            /// # Safety
            /// The operands must be as [`Operands::new`] gives them.
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn one_token(mut operands: Operands, ahead: usize) {
                // SAFETY: as promised by the caller.
                unsafe {
                    let mut acc = load_floats(operands.acc);
                    while operands.blocks > 0 {
                        let mut group = [vdupq_n_s32(0); 2];
                        prefetch_header(&operands, ahead);
                        for _ in 0..operands.group_blocks() {
                            prefetch::<$bytes>(operands.ahead(ahead));
                            let w = $unpack(&operands);
                            let levels = $levels(&operands);
                            group = $add(group, &w, operands.x, *operands.x_offset, levels);
                            operands.advance_block();
                        }
                        let w_scale = load_halves(operands.scales);
                        acc = scaled(group, w_scale, *operands.x_scale, acc);
                        operands.advance_group();
                    }
                    store_floats(operands.acc, acc);
                }
            }
        }
    };
}

products!(q4_neon, 128, unpack_q4, load_levels, add_q4);
products!(q8_neon, 256, load_q8, no_levels, add_q8);

/// The products with `sdot`.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, for `count` panels.
#[target_feature(enable = "neon,dotprod")]
unsafe fn panels_dotprod<const Q4: bool>(operands: Operands, count: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        for panel in 0..count {
            if operands.tokens == 1 {
                one_token_dotprod::<Q4>(operands.panel(panel), usize::from(panel + 1 < count));
            } else {
                many_tokens_dotprod::<Q4>(operands.panel(panel));
            }
        }
    }
}

/// One token: the sums stay in registers. The panel that is needed next is `ahead` panels further on; 0 if none is, because
/// what others need should not be read here.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn one_token_dotprod<const Q4: bool>(mut operands: Operands, ahead: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = load_floats(operands.acc);
        while operands.blocks > 0 {
            let mut group = [vdupq_n_s32(0); 2];
            prefetch_header(&operands, ahead);
            for _ in 0..operands.group_blocks() {
                if Q4 {
                    prefetch::<128>(operands.ahead(ahead));
                    let start = [vdupq_n_s32(*operands.x_offset); 2];
                    let sums = add_dotprod(start, &unpack_q4(&operands), operands.x);
                    let levels = load_levels(&operands);
                    group[0] = vmlaq_s32(group[0], sums[0], levels[0]);
                    group[1] = vmlaq_s32(group[1], sums[1], levels[1]);
                } else {
                    prefetch::<256>(operands.ahead(ahead));
                    group = add_dotprod(group, &load_q8(&operands), operands.x);
                }
                operands.advance_block();
            }
            let w_scale = load_halves(operands.scales);
            acc = scaled(group, w_scale, *operands.x_scale, acc);
            operands.advance_group();
        }
        store_floats(operands.acc, acc);
    }
}

/// Many tokens, six at a time, each with a whole group: their sums stay in registers, and the group's weights, of q4
/// multiplied with their levels, come from the first cache.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn many_tokens_dotprod<const Q4: bool>(mut operands: Operands) {
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
                tokens_dotprod::<6>(&first, t, w, blocks);
                t += 6;
            }
            while t + 2 <= first.tokens {
                tokens_dotprod::<2>(&first, t, w, blocks);
                t += 2;
            }
            if t < first.tokens {
                tokens_dotprod::<1>(&first, t, w, blocks);
            }
            operands.advance_group();
        }
    }
}

/// `T` tokens from `first` on with a group of signed weights.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with so many tokens; `w` must be readable for `blocks` blocks of
/// q8.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tokens_dotprod<const T: usize>(
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

/// A block with one token.
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

/// The four activations at `x`, four times.
///
/// # Safety
/// 4 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn repeat4(x: *const u8) -> int8x16_t {
    // SAFETY: as promised by the caller.
    vreinterpretq_s8_s32(vdupq_n_s32(unsafe { x.cast::<i32>().read_unaligned() }))
}

/// A block of nibbles with `smlal`.
///
/// # Safety
/// 32 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_q4(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    x: *const u8,
    offset: i32,
    levels: [int32x4_t; 2],
) -> [int32x4_t; 2] {
    // Two rows in each.
    let mut sums = [vdupq_n_s16(offset as i16); 4];
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
        vmlaq_s32(group[0], rows(0), levels[0]),
        vmlaq_s32(group[1], rows(1), levels[1]),
    ]
}

/// A block of q8 with `smull` and `smlal`.
///
/// # Safety
/// 32 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_q8(
    group: [int32x4_t; 2],
    w: &[int8x16_t; 16],
    x: *const u8,
    _: i32,
    _: [int32x4_t; 2],
) -> [int32x4_t; 2] {
    // Two rows in each.
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

/// 4 numbers in single precision.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_4<T: Element>(numbers: *const T) -> float32x4_t {
    // SAFETY: as promised by the caller.
    unsafe {
        if T::HALF {
            vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(numbers.cast())))
        } else {
            vld1q_f32(numbers.cast())
        }
    }
}

/// `R` rows and `V` vectors of 4 columns of a product, in registers.
///
/// # Safety
/// `a` must be readable for `R` rows of `k`, `b` for `k` rows and `c` writable for `R` rows of `4 V` columns.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile_neon<const R: usize, const V: usize, T: Element>(
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const T,
    b_stride: usize,
    add: bool,
    c: *mut f32,
    c_stride: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); V]; R];
        for r in 0..if add { R } else { 0 } {
            for v in 0..V {
                acc[r][v] = vld1q_f32(c.add(r * c_stride + 4 * v));
            }
        }
        for p in 0..k {
            let mut row = [vdupq_n_f32(0.0); V];
            for (v, row) in row.iter_mut().enumerate() {
                *row = load_4(b.add(p * b_stride + 4 * v));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = *a.add(r * a_stride + p);
                for v in 0..V {
                    acc[v] = vfmaq_n_f32(acc[v], row[v], x);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                vst1q_f32(c.add(r * c_stride + 4 * v), acc[r][v]);
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn matmul_neon<T: Element>(
    size: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_, T>,
    add: bool,
    c: &mut [f32],
    c_stride: usize,
) {
    check_matmul(size, a, b, c, c_stride);
    let [m, n, k] = size;
    let c = (c.as_mut_ptr(), c_stride);
    let mut j = 0;
    // SAFETY: checked above.
    unsafe {
        while j + 16 <= n {
            row_tiles!(tile_neon, T, 4, [1 2 3 4 5 6], 6, m, k, a, b, add, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_neon, T, 2, [1 2 3 4 5 6 7 8], 8, m, k, a, b, add, c, j);
        }
    }
}

/// `N` panels with one token, so that `2 N` chains of additions are under way at a time.
///
/// # Safety
/// `panels` must be readable for `N` panels of `x.len()` inputs, `acc` writable for `8 N` floats.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn gemv<const N: usize, const HALF: bool>(
    panels: *const u8,
    panel_bytes: usize,
    x: &[f32],
    acc: *mut f32,
) {
    let size = if HALF { 2 * PANEL } else { 4 * PANEL };
    let mut sums = [[vdupq_n_f32(0.0); 2]; N];
    for (i, x) in x.iter().enumerate() {
        for (p, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as promised by the caller.
            let w = unsafe {
                let w = panels.add(p * panel_bytes + i * size);
                if HALF {
                    load_halves(w)
                } else {
                    [vld1q_f32(w.cast()), vld1q_f32(w.cast::<f32>().add(4))]
                }
            };
            sums[0] = vfmaq_n_f32(sums[0], w[0], *x);
            sums[1] = vfmaq_n_f32(sums[1], w[1], *x);
        }
    }
    for (p, sums) in sums.into_iter().enumerate() {
        // SAFETY: as promised by the caller.
        unsafe {
            vst1q_f32(acc.add(p * PANEL), sums[0]);
            vst1q_f32(acc.add(p * PANEL + 4), sums[1]);
        }
    }
}

#[target_feature(enable = "neon")]
fn float_gemv<const HALF: bool>(panels: &[u8], panel_bytes: usize, x: &[f32], acc: &mut [f32]) {
    let size = if HALF { 2 * PANEL } else { 4 * PANEL };
    let count = acc.len() / PANEL;
    assert!(
        panel_bytes >= x.len() * size && panels.len() >= count * panel_bytes,
        "{count} panels"
    );
    let mut p = 0;
    // SAFETY: the operands are as large as just checked.
    unsafe {
        while p + 4 <= count {
            gemv::<4, HALF>(
                panels[p * panel_bytes..].as_ptr(),
                panel_bytes,
                x,
                acc[p * PANEL..].as_mut_ptr(),
            );
            p += 4;
        }
        while p < count {
            gemv::<1, HALF>(
                panels[p * panel_bytes..].as_ptr(),
                panel_bytes,
                x,
                acc[p * PANEL..].as_mut_ptr(),
            );
            p += 1;
        }
    }
}

#[target_feature(enable = "neon")]
fn widen(halves: &[u8], out: &mut [f32]) {
    assert_eq!(halves.len(), 2 * out.len(), "two bytes per number");
    let whole = out.len() / 8 * 8;
    for i in (0..whole).step_by(8) {
        // SAFETY: 8 numbers from `i` on are in both slices.
        unsafe {
            let wide = load_halves(halves.as_ptr().add(2 * i));
            vst1q_f32(out.as_mut_ptr().add(i), wide[0]);
            vst1q_f32(out.as_mut_ptr().add(i + 4), wide[1]);
        }
    }
    crate::generic::widen(&halves[2 * whole..], &mut out[whole..]);
}

/// `smlal` into 16 bits.
#[target_feature(enable = "neon")]
fn spin_q4_neon(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "smlal v0.8h, v14.8b, v15.8b",
            "smlal2 v0.8h, v14.16b, v15.16b",
            "smlal v1.8h, v14.8b, v15.8b",
            "smlal2 v1.8h, v14.16b, v15.16b",
            "smlal v2.8h, v14.8b, v15.8b",
            "smlal2 v2.8h, v14.16b, v15.16b",
            "smlal v3.8h, v14.8b, v15.8b",
            "smlal2 v3.8h, v14.16b, v15.16b",
            "smlal v4.8h, v14.8b, v15.8b",
            "smlal2 v4.8h, v14.16b, v15.16b",
            "smlal v5.8h, v14.8b, v15.8b",
            "smlal2 v5.8h, v14.16b, v15.16b",
            "smlal v6.8h, v14.8b, v15.8b",
            "smlal2 v6.8h, v14.16b, v15.16b",
            "smlal v7.8h, v14.8b, v15.8b",
            "smlal2 v7.8h, v14.16b, v15.16b",
            "smlal v8.8h, v14.8b, v15.8b",
            "smlal2 v8.8h, v14.16b, v15.16b",
            "smlal v9.8h, v14.8b, v15.8b",
            "smlal2 v9.8h, v14.16b, v15.16b",
            "smlal v10.8h, v14.8b, v15.8b",
            "smlal2 v10.8h, v14.16b, v15.16b",
            "smlal v11.8h, v14.8b, v15.8b",
            "smlal2 v11.8h, v14.16b, v15.16b",
            "subs {rounds:w}, {rounds:w}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("v14") vdupq_n_s8(3), in("v15") vdupq_n_s8(5),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 384
}

/// `smull`, `smlal` and `sadalp` into 32 bits.
#[target_feature(enable = "neon")]
fn spin_q8_neon(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v0.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v1.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v2.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v3.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v4.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v5.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v6.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v7.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v8.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v9.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v10.4s, v13.8h",
            "smull v13.8h, v14.8b, v15.8b",
            "smlal2 v13.8h, v14.16b, v15.16b",
            "sadalp v11.4s, v13.8h",
            "subs {rounds:w}, {rounds:w}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("v14") vdupq_n_s8(3), in("v15") vdupq_n_s8(5),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v13") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 384
}

/// Dot products of 16 bytes.
#[target_feature(enable = "neon,dotprod")]
fn spin_dotprod(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "sdot v0.4s, v14.16b, v15.16b",
            "sdot v1.4s, v14.16b, v15.16b",
            "sdot v2.4s, v14.16b, v15.16b",
            "sdot v3.4s, v14.16b, v15.16b",
            "sdot v4.4s, v14.16b, v15.16b",
            "sdot v5.4s, v14.16b, v15.16b",
            "sdot v6.4s, v14.16b, v15.16b",
            "sdot v7.4s, v14.16b, v15.16b",
            "sdot v8.4s, v14.16b, v15.16b",
            "sdot v9.4s, v14.16b, v15.16b",
            "sdot v10.4s, v14.16b, v15.16b",
            "sdot v11.4s, v14.16b, v15.16b",
            "subs {rounds:w}, {rounds:w}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("v14") vdupq_n_s8(3), in("v15") vdupq_n_s8(5),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 384
}

/// Fused multiply-adds of 4 floats.
#[target_feature(enable = "neon")]
fn spin_float(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "fmla v0.4s, v14.4s, v15.4s",
            "fmla v1.4s, v14.4s, v15.4s",
            "fmla v2.4s, v14.4s, v15.4s",
            "fmla v3.4s, v14.4s, v15.4s",
            "fmla v4.4s, v14.4s, v15.4s",
            "fmla v5.4s, v14.4s, v15.4s",
            "fmla v6.4s, v14.4s, v15.4s",
            "fmla v7.4s, v14.4s, v15.4s",
            "fmla v8.4s, v14.4s, v15.4s",
            "fmla v9.4s, v14.4s, v15.4s",
            "fmla v10.4s, v14.4s, v15.4s",
            "fmla v11.4s, v14.4s, v15.4s",
            "subs {rounds:w}, {rounds:w}, #1",
            "b.ne 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("v14") vdupq_n_f32(0.5), in("v15") vdupq_n_f32(0.25),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 96
}

/// The methods that both have in common.
macro_rules! neon_kernels {
    () => {
        fn matmul(
            &self,
            size: [usize; 3],
            a: Strided<'_>,
            b: Strided<'_>,
            add: bool,
            c: &mut [f32],
            c_stride: usize,
        ) {
            // SAFETY: every AArch64 has these features.
            unsafe { matmul_neon(size, a, b, add, c, c_stride) }
        }

        fn matmul_half(
            &self,
            size: [usize; 3],
            a: Strided<'_>,
            b: Strided<'_, f16>,
            c: &mut [f32],
            c_stride: usize,
        ) {
            // SAFETY: every AArch64 has Advanced SIMD.
            unsafe { matmul_neon(size, a, b, false, c, c_stride) }
        }

        fn float_gemv(
            &self,
            format: Format,
            panels: &[u8],
            panel_bytes: usize,
            x: &[f32],
            acc: &mut [f32],
        ) {
            // SAFETY: every AArch64 has these features.
            unsafe {
                if format == Format::F16 {
                    float_gemv::<true>(panels, panel_bytes, x, acc)
                } else {
                    float_gemv::<false>(panels, panel_bytes, x, acc)
                }
            }
        }

        fn widen(&self, halves: &[u8], out: &mut [f32]) {
            // SAFETY: every AArch64 has these features.
            unsafe { widen(halves, out) }
        }

        row_kernels!(true);
    };
}

impl Kernels for Neon {
    fn isa(&self) -> Isa {
        Isa::Neon
    }

    fn code(&self, format: Format) -> ActivationCode {
        let offset = if format == Format::Q4 { -2 } else { 0 };
        ActivationCode {
            limit: 127.0,
            bias: 0,
            offset,
            pairs: false,
        }
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let operands = Operands::new(panels, range, tile, acc);
        // SAFETY: the operands are checked, and every AArch64 has these features.
        unsafe {
            match panels.format {
                Format::Q4 => q4_neon::panels(operands, panels.count()),
                _ => q8_neon::panels(operands, panels.count()),
            }
        }
    }

    neon_kernels!();

    fn spin(&self, format: Format, rounds: u32) -> Option<u64> {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        Some(unsafe {
            match format {
                Format::Q4 => spin_q4_neon(rounds),
                Format::Q8 => spin_q8_neon(rounds),
                Format::F16 | Format::F32 => spin_float(rounds),
            }
        })
    }
}

impl Kernels for NeonDotprod {
    fn isa(&self) -> Isa {
        Isa::NeonDotprod
    }

    fn code(&self, format: Format) -> ActivationCode {
        let offset = if format == Format::Q4 { -8 } else { 0 };
        ActivationCode {
            limit: 127.0,
            bias: 0,
            offset,
            pairs: false,
        }
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let operands = Operands::new(panels, range, tile, acc);
        // SAFETY: the operands are checked, and `find` hands these kernels out only on machines with `sdot`.
        unsafe {
            match panels.format {
                Format::Q4 => panels_dotprod::<true>(operands, panels.count()),
                _ => panels_dotprod::<false>(operands, panels.count()),
            }
        }
    }

    neon_kernels!();

    fn spin(&self, format: Format, rounds: u32) -> Option<u64> {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        Some(unsafe {
            match format {
                Format::Q4 => spin_dotprod(rounds),
                Format::Q8 => spin_dotprod(rounds),
                Format::F16 | Format::F32 => spin_float(rounds),
            }
        })
    }
}
