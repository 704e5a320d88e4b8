//! Loads of packed weights, scales and activations, and the conversion of sums.

use crate::format::LEVELS;
use crate::operands::Operands;
use std::arch::x86_64::*;

/// Broadcasts the four activations at `x` to all 32-bit lanes.
///
/// # Safety
/// Four bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn broadcast4(x: *const u8) -> __m256i {
    // SAFETY: as promised by the caller; the read is unaligned.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

/// Constant that makes the levels of q4 unsigned.
pub(super) const LEVEL_BIAS: i32 = 16;

/// The levels of q4 as unsigned bytes `level + LEVEL_BIAS`, as a table for `vpshufb`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn biased_levels() -> __m128i {
    const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        let mut code = 0;
        while code < 16 {
            table[code] = (LEVELS[code] as i32 + LEVEL_BIAS) as u8;
            code += 1;
        }
        table
    };
    // SAFETY: the table is 16 bytes.
    unsafe { _mm_loadu_si128(TABLE.as_ptr().cast()) }
}

/// Unpacks a q4 block to 8 vectors of bytes `level + LEVEL_BIAS`.
///
/// # Safety
/// A block's 128 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack_q4(quants: *const u8) -> [__m256i; 8] {
    let low = _mm256_set1_epi8(15);
    let levels = _mm256_broadcastsi128_si256(biased_levels());
    let mut w = [_mm256_setzero_si256(); 8];
    for v in 0..4 {
        // SAFETY: four vectors of 32 bytes, as promised by the caller.
        let both = unsafe { _mm256_loadu_si256(quants.add(32 * v).cast()) };
        let (first, second) = (both, _mm256_srli_epi16(both, 4));
        w[2 * v] = _mm256_shuffle_epi8(levels, _mm256_and_si256(first, low));
        w[2 * v + 1] = _mm256_shuffle_epi8(levels, _mm256_and_si256(second, low));
    }
    w
}

/// Loads the 8 vectors of a q8 block.
///
/// # Safety
/// A block's 256 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_q8(quants: *const u8) -> [__m256i; 8] {
    let mut w = [_mm256_setzero_si256(); 8];
    for (v, w) in w.iter_mut().enumerate() {
        // SAFETY: eight vectors of 32 bytes, as promised by the caller.
        *w = unsafe { _mm256_loadu_si256(quants.add(32 * v).cast()) };
    }
    w
}

/// Loads the 8 vectors of a q8 block as unsigned bytes `w + 128`.
///
/// # Safety
/// A block's 256 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_q8_unsigned(quants: *const u8) -> [__m256i; 8] {
    // SAFETY: as promised by the caller.
    let mut w = unsafe { load_q8(quants) };
    for w in &mut w {
        *w = _mm256_xor_si256(*w, _mm256_set1_epi8(-128));
    }
    w
}

/// Loads 8 half-precision numbers as single precision.
///
/// # Safety
/// 16 bytes at `halves` must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn load_halves(halves: *const u8) -> __m256 {
    // SAFETY: as promised by the caller.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.cast()) })
}

/// Prefetches `BYTES` bytes into the L2 cache; they are used only when the next panels are computed.
#[inline(always)]
pub(super) fn prefetch<const BYTES: usize>(address: *const u8) {
    for line in (0..BYTES).step_by(64) {
        // SAFETY: a prefetch of any address is harmless, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.wrapping_add(line).cast()) };
    }
}

/// Prefetches the scales and sub-block scales of a group `AHEAD` panels ahead, unless `AHEAD` is 0.
#[inline(always)]
pub(super) fn prefetch_header<const AHEAD: usize>(operands: &Operands) {
    if AHEAD > 0 {
        for address in operands.header_ahead(AHEAD) {
            prefetch::<64>(address);
        }
    }
}

/// `acc + sums * (w_scale * x_scale)` for 8 rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn scaled(sums: __m256i, w_scale: __m256, x_scale: f32, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(
        _mm256_cvtepi32_ps(sums),
        _mm256_mul_ps(w_scale, _mm256_set1_ps(x_scale)),
        acc,
    )
}

/// Loads 8 sub-block scales as 32-bit integers.
///
/// # Safety
/// 8 bytes at `sub_scales` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_sub_scales(sub_scales: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(sub_scales.cast()) })
}

/// Loads 8 sub-block scales, each twice, as 16-bit integers.
///
/// # Safety
/// 8 bytes at `sub_scales` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_sub_scale_pairs(sub_scales: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    let sub_scales = unsafe { load_sub_scales(sub_scales) };
    _mm256_blend_epi16::<0xaa>(sub_scales, _mm256_slli_epi32::<16>(sub_scales))
}

/// Sub-block scales for formats without them: unused.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn no_sub_scales(_: *const u8) -> __m256i {
    _mm256_setzero_si256()
}
