//! Loads of packed weights, scales and activations, and the conversion of sums.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use crate::format::LEVELS;
use crate::operands::Operands;
use std::arch::aarch64::*;
use std::arch::asm;

/// Unpacks a q4 block to 8 pairs of vectors of levels.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn unpack_q4(operands: &Operands) -> [int8x16_t; 16] {
    // SAFETY: the table is 16 bytes.
    let levels = unsafe { vld1q_s8(LEVELS.as_ptr()) };
    let mut w = [vdupq_n_s8(0); 16];
    for v in 0..4 {
        for half in 0..2 {
            // SAFETY: eight vectors of 16 bytes, as promised by the caller.
            let both = unsafe { vld1q_u8(operands.quants.add(32 * v + 16 * half)) };
            w[4 * v + half] = vqtbl1q_s8(levels, vandq_u8(both, vdupq_n_u8(15)));
            w[4 * v + 2 + half] = vqtbl1q_s8(levels, vshrq_n_u8::<4>(both));
        }
    }
    w
}

/// Unpacks a q4 block to 8 pairs of vectors of `sub_scale * level`.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn expand_q4(operands: &Operands) -> [int8x16_t; 16] {
    // Table indices that repeat each sub-block scale four times.
    let first = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
    // SAFETY: the indices are 16 bytes; the operands are as promised by the caller.
    let (first, sub_scales, mut w) = unsafe {
        (
            vld1q_u8(first.as_ptr()),
            vld1_s8(operands.sub_scales.cast()),
            unpack_q4(operands),
        )
    };
    let table = vcombine_s8(sub_scales, sub_scales);
    let sub_scales = [
        vqtbl1q_s8(table, first),
        vqtbl1q_s8(table, vaddq_u8(first, vdupq_n_u8(4))),
    ];
    for (i, w) in w.iter_mut().enumerate() {
        *w = vmulq_s8(*w, sub_scales[i % 2]);
    }
    w
}

/// Loads the 8 pairs of vectors of a q8 block.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load_q8(operands: &Operands) -> [int8x16_t; 16] {
    let mut w = [vdupq_n_s8(0); 16];
    for (v, w) in w.iter_mut().enumerate() {
        // SAFETY: sixteen vectors of 16 bytes, as promised by the caller.
        *w = unsafe { vld1q_s8(operands.quants.add(16 * v).cast()) };
    }
    w
}

/// Loads the 8 sub-block scales of a q4 block as 32-bit integers.
///
/// # Safety
/// The operands must be those of [`Operands::new`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load_sub_scales(operands: &Operands) -> [int32x4_t; 2] {
    // SAFETY: 8 bytes, as promised by the caller.
    let sub_scales = vmovl_s8(unsafe { vld1_s8(operands.sub_scales.cast()) });
    [
        vmovl_s16(vget_low_s16(sub_scales)),
        vmovl_s16(vget_high_s16(sub_scales)),
    ]
}

/// Sub-block scales for formats without them: unused.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn no_sub_scales(_: &Operands) -> [int32x4_t; 2] {
    [vdupq_n_s32(1); 2]
}

/// Loads 8 half-precision numbers as single precision.
///
/// # Safety
/// 16 bytes at `halves` must be readable.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load_halves(halves: *const u8) -> [float32x4_t; 2] {
    // SAFETY: as promised by the caller.
    let halves = unsafe { vreinterpretq_u16_u8(vld1q_u8(halves)) };
    let (low, high) = (vget_low_u16(halves), vget_high_u16(halves));
    [
        vcvt_f32_f16(vreinterpret_f16_u16(low)),
        vcvt_f32_f16(vreinterpret_f16_u16(high)),
    ]
}

/// Prefetches `BYTES` bytes into the L2 cache; they are used only when the next panel is computed.
#[inline(always)]
pub(super) fn prefetch<const BYTES: usize>(address: *const u8) {
    for line in (0..BYTES).step_by(64) {
        let line = address.wrapping_add(line);
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(readonly, nostack, preserves_flags))
        };
    }
}

/// Prefetches the scales and sub-block scales of a group `panels` panels ahead.
#[inline(always)]
pub(super) fn prefetch_header(operands: &Operands, panels: usize) {
    for address in operands.header_ahead(panels) {
        prefetch::<64>(address);
    }
}

/// `acc + sums * (w_scale * x_scale)` for 8 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scaled(
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

/// Loads 8 floats.
///
/// # Safety
/// 8 floats must be readable at `address`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load_floats(address: *const f32) -> [float32x4_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe { [vld1q_f32(address), vld1q_f32(address.add(4))] }
}

/// Stores 8 floats.
///
/// # Safety
/// 8 floats must be writable at `address`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn store_floats(address: *mut f32, floats: [float32x4_t; 2]) {
    // SAFETY: as promised by the caller.
    unsafe {
        vst1q_f32(address, floats[0]);
        vst1q_f32(address.add(4), floats[1]);
    }
}

/// Broadcasts the four activations at `x` to all 32-bit lanes.
///
/// # Safety
/// 4 bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn repeat4(x: *const u8) -> int8x16_t {
    // SAFETY: as promised by the caller.
    vreinterpretq_s8_s32(vdupq_n_s32(unsafe { x.cast::<i32>().read_unaligned() }))
}
