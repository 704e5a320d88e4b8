//! Products with quantized weights in 512-bit registers: two panels side by side.
//!
//! `vpdpbusd` multiplies unsigned weights. For many tokens q4 is first expanded to q8
//! (`sub_scale * level + 128`), so that a product is one load and one `vpdpbusd`.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::load::{
    LEVEL_BIAS, biased_levels, load_halves, load_sub_scales, prefetch, prefetch_header,
};
use super::quantized::{q4_avx512, q8_avx512};
use crate::format::{BLOCK, GROUP, PANEL, SCALES_BYTES};
use crate::operands::Operands;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Joins two 256-bit registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Loads vector `v` of a block of two panels, which are 16 rows.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with one more panel after this one, and `v` a vector
/// of the block.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
unsafe fn load_pair(operands: &Operands, v: usize) -> __m512i {
    let (first, second) = (operands.quants, operands.panel(1).quants);
    // SAFETY: as promised by the caller.
    unsafe {
        join(
            _mm256_loadu_si256(first.add(32 * v).cast()),
            _mm256_loadu_si256(second.add(32 * v).cast()),
        )
    }
}

/// Loads the sub-block scales of a block of two panels as 32-bit integers.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with one more panel after this one.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
unsafe fn load_pair_sub_scales(operands: &Operands) -> __m512i {
    // SAFETY: as promised by the caller.
    unsafe {
        join(
            load_sub_scales(operands.sub_scales),
            load_sub_scales(operands.panel(1).sub_scales),
        )
    }
}

/// Loads the scales of a group of two panels.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with one more panel after this one.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512dq")]
unsafe fn load_pair_scales(operands: &Operands) -> __m512 {
    // SAFETY: as promised by the caller.
    unsafe {
        _mm512_insertf32x8::<1>(
            _mm512_castps256_ps512(load_halves(operands.scales)),
            load_halves(operands.panel(1).scales),
        )
    }
}

/// Prefetches the weights of two panels `AHEAD` panels ahead, unless `AHEAD` is 0.
#[inline(always)]
fn prefetch_pair<const Q4: bool, const AHEAD: usize>(operands: &Operands) {
    if AHEAD > 0 {
        for panel in [operands.ahead(AHEAD), operands.panel(1).ahead(AHEAD)] {
            if Q4 {
                prefetch::<128>(panel);
            } else {
                prefetch::<256>(panel);
            }
        }
    }
}

/// Unpacks a q4 block of two panels to 8 vectors of bytes `level + LEVEL_BIAS`.
///
/// # Safety
/// As [`load_pair`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
unsafe fn unpack_pair(operands: &Operands) -> [__m512i; 8] {
    let low = _mm512_set1_epi8(15);
    let levels = _mm512_broadcast_i32x4(biased_levels());
    let mut w = [_mm512_setzero_si512(); 8];
    for v in 0..4 {
        // SAFETY: as promised by the caller.
        let both = unsafe { load_pair(operands, v) };
        let (first, second) = (both, _mm512_srli_epi16::<4>(both));
        w[2 * v] = _mm512_shuffle_epi8(levels, _mm512_and_si512(first, low));
        w[2 * v + 1] = _mm512_shuffle_epi8(levels, _mm512_and_si512(second, low));
    }
    w
}

/// Unpacks a block of two panels to 8 vectors of unsigned bytes `w + 128`, in q4 with `w` multiplied
/// by the sub-block scale.
///
/// # Safety
/// As [`load_pair`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
unsafe fn expand_pair<const Q4: bool>(operands: &Operands) -> [__m512i; 8] {
    // SAFETY: as promised by the caller.
    unsafe {
        if Q4 {
            // level * sub_scale + 128 for each weight, modulo 256. The sub-block scale is in both 16-bit
            // halves of its row.
            let sub_scales = load_pair_sub_scales(operands);
            let sub_scales = _mm512_or_si512(
                _mm512_slli_epi32::<16>(sub_scales),
                _mm512_and_si512(sub_scales, _mm512_set1_epi32(0xffff)),
            );
            let (even, odd) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(!0xff));
            let times = |w: __m512i| {
                let odd = _mm512_mullo_epi16(_mm512_and_si512(w, odd), sub_scales);
                let even = _mm512_mullo_epi16(_mm512_and_si512(w, even), sub_scales);
                _mm512_mask_blend_epi8(0x5555_5555_5555_5555, odd, even)
            };
            let bias = _mm512_sub_epi8(
                _mm512_set1_epi8(-128),
                times(_mm512_set1_epi8(LEVEL_BIAS as i8)),
            );
            unpack_pair(operands).map(|w| _mm512_add_epi8(times(w), bias))
        } else {
            let mut w = [_mm512_setzero_si512(); 8];
            for (v, w) in w.iter_mut().enumerate() {
                *w = _mm512_xor_si512(load_pair(operands, v), _mm512_set1_epi8(-128));
            }
            w
        }
    }
}

/// Multiplies `P` pairs of panels by a tile, group by group. The sums of four tokens stay in registers;
/// the unpacked weights of the group are read from the L1 cache. `next` points to the panels and group
/// that are computed next and is only prefetched.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with `2 P - 1` more panels after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pairs_many_tokens<const Q4: bool, const P: usize>(
    mut operands: Operands,
    mut next: Operands,
) {
    let mut expanded = [[[const { MaybeUninit::<__m512i>::uninit() }; P]; 8]; GROUP];
    // SAFETY: as promised by the caller; the vectors of `blocks` blocks are written before they are read.
    unsafe {
        while operands.blocks > 0 {
            let first = operands;
            let blocks = operands.group_blocks();
            let mut w_scale = [_mm512_setzero_ps(); P];
            for (p, w_scale) in w_scale.iter_mut().enumerate() {
                *w_scale = load_pair_scales(&operands.panel(2 * p));
            }
            for panel in 0..2 * P {
                prefetch::<64>(next.panel(panel).sub_scales);
                prefetch::<64>(next.panel(panel).scales);
            }
            for expanded in &mut expanded[..blocks] {
                for p in 0..P {
                    let pair = operands.panel(2 * p);
                    for panel in 0..2 {
                        let quants = next.panel(2 * p + panel).quants;
                        if Q4 {
                            prefetch::<128>(quants);
                        } else {
                            prefetch::<256>(quants);
                        }
                    }
                    let w = expand_pair::<Q4>(&pair);
                    for i in 0..8 {
                        expanded[i][p].write(w[i]);
                    }
                }
                operands.advance_block();
                next.quants = next.quants.wrapping_add(next.block_bytes);
            }
            let w = std::slice::from_raw_parts(expanded.as_ptr().cast(), blocks);
            let mut t = 0;
            while t + 4 <= first.tokens {
                pairs_tokens::<Q4, P, 4>(&first, t, w, &w_scale);
                t += 4;
            }
            while t + 2 <= first.tokens {
                pairs_tokens::<Q4, P, 2>(&first, t, w, &w_scale);
                t += 2;
            }
            if t < first.tokens {
                pairs_tokens::<Q4, P, 1>(&first, t, w, &w_scale);
            }
            operands.advance_group();
            next.sub_scales = next.sub_scales.wrapping_add(GROUP * next.sub_scale_bytes);
            next.scales = next.scales.wrapping_add(SCALES_BYTES);
        }
    }
}

/// Multiplies a group of weights, unpacked by [`expand_pair`], by `T` tokens from `first` on.
///
/// # Safety
/// The operands must be those of [`Operands::new`], with at least `first + T` tokens and `2 P - 1` more
/// panels after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pairs_tokens<const Q4: bool, const P: usize, const T: usize>(
    operands: &Operands,
    first: usize,
    w: &[[[__m512i; P]; 8]],
    w_scale: &[__m512; P],
) {
    // The offsets are -16 (q4) or -128 (q8) times the sum of the quants; the unpacked weights, `w + 128`,
    // need -128 times.
    let offset_factor = if Q4 { 128 / LEVEL_BIAS } else { 1 };
    // SAFETY: as promised by the caller; the reads of activations are unaligned.
    unsafe {
        let x = operands.x.add(BLOCK * first);
        let mut sums = [[_mm512_setzero_si512(); P]; T];
        for (t, sums) in sums.iter_mut().enumerate() {
            let mut offset = 0;
            for block in 0..w.len() {
                offset += *operands.x_offset.add(block * operands.tokens + first + t);
            }
            *sums = [_mm512_set1_epi32(offset * offset_factor); P];
        }
        for (block, w) in w.iter().enumerate() {
            let x = x.add(block * BLOCK * operands.tokens);
            for (i, w) in w.iter().enumerate() {
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = x.add(BLOCK * t + 4 * i).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    for p in 0..P {
                        sums[p] = _mm512_dpbusd_epi32(sums[p], w[p], x);
                    }
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let x_scale = _mm512_set1_ps(*operands.x_scale.add(first + t));
            for p in 0..P {
                let acc = operands
                    .acc
                    .add((first + t) * operands.stride + 2 * PANEL * p);
                let sums = _mm512_cvtepi32_ps(sums[p]);
                let scale = _mm512_mul_ps(w_scale[p], x_scale);
                _mm512_storeu_ps(acc, _mm512_fmadd_ps(sums, scale, _mm512_loadu_ps(acc)));
            }
        }
    }
}

/// Multiplies a pair of panels by `T` tokens, with the sums in registers. q4 is multiplied as nibbles and
/// the sub-block scales are applied to the sums: for a few tokens this takes less than expanding the weights.
/// Prefetches the panels `AHEAD` panels ahead, unless `AHEAD` is 0: the panels after the last ones belong to
/// another task.
///
/// # Safety
/// The operands must be those of [`Operands::new`], for `T` tokens, with one more panel after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pair_few_tokens<const Q4: bool, const T: usize, const AHEAD: usize>(
    mut operands: Operands,
) {
    // SAFETY: as promised by the caller; the reads of activations are unaligned.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); T];
        for t in 0..T {
            acc[t] = _mm512_loadu_ps(operands.acc.add(t * operands.stride));
        }
        while operands.blocks > 0 {
            let mut group = [_mm512_setzero_si512(); T];
            prefetch_header::<AHEAD>(&operands);
            prefetch_header::<AHEAD>(&operands.panel(1));
            for _ in 0..operands.group_blocks() {
                prefetch_pair::<Q4, AHEAD>(&operands);
                let w = if Q4 {
                    unpack_pair(&operands)
                } else {
                    expand_pair::<Q4>(&operands)
                };
                for t in 0..T {
                    let x = operands.x.add(BLOCK * t).cast::<i32>();
                    let offset = _mm512_set1_epi32(*operands.x_offset.add(t));
                    let mut sums = [offset, _mm512_setzero_si512()];
                    for i in 0..8 {
                        let x = _mm512_set1_epi32(x.add(i).read_unaligned());
                        sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], w[i], x);
                    }
                    let mut sum = _mm512_add_epi32(sums[0], sums[1]);
                    if Q4 {
                        sum = _mm512_mullo_epi32(sum, load_pair_sub_scales(&operands));
                    }
                    group[t] = _mm512_add_epi32(group[t], sum);
                }
                operands.advance_block();
            }
            let w_scale = load_pair_scales(&operands);
            for t in 0..T {
                let x_scale = _mm512_set1_ps(*operands.x_scale.add(t));
                let scale = _mm512_mul_ps(w_scale, x_scale);
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group[t]), scale, acc[t]);
            }
            operands.advance_group();
        }
        for t in 0..T {
            _mm512_storeu_ps(operands.acc.add(t * operands.stride), acc[t]);
        }
    }
}

/// Multiplies `count` panels by `T` tokens, in pairs. Returns the number of panels that are done: all
/// but the last one if `count` is odd.
///
/// # Safety
/// The operands must be those of [`Operands::new`], for `T` tokens and `count` panels.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few_tokens<const Q4: bool, const T: usize>(operands: Operands, count: usize) -> usize {
    let mut panel = 0;
    // SAFETY: as promised by the caller.
    unsafe {
        while panel + 4 <= count {
            pair_few_tokens::<Q4, T, 2>(operands.panel(panel));
            panel += 2;
        }
        if panel + 2 <= count {
            pair_few_tokens::<Q4, T, 0>(operands.panel(panel));
            panel += 2;
        }
    }
    panel
}

/// Multiplies `count` panels by a tile: in pairs for few tokens, eight at a time for many.
///
/// # Safety
/// The operands must be those of [`Operands::new`], for `count` panels.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn panels<const Q4: bool>(operands: Operands, count: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut panel = match operands.tokens {
            1 => few_tokens::<Q4, 1>(operands, count),
            2 => few_tokens::<Q4, 2>(operands, count),
            3 => few_tokens::<Q4, 3>(operands, count),
            4 => few_tokens::<Q4, 4>(operands, count),
            5 => few_tokens::<Q4, 5>(operands, count),
            6 => few_tokens::<Q4, 6>(operands, count),
            7 => few_tokens::<Q4, 7>(operands, count),
            8 => few_tokens::<Q4, 8>(operands, count),
            _ => 0,
        };
        // The last panels of a call are followed by its first ones with the next group, unless this call
        // computes all groups.
        let next = |panel: usize, step: usize| {
            if panel + 2 * step <= count {
                operands.panel(panel + step)
            } else if operands.blocks > GROUP {
                operands.panel(panel)
            } else {
                Operands {
                    quants: operands.quants.wrapping_add(GROUP * operands.block_bytes),
                    sub_scales: operands
                        .sub_scales
                        .wrapping_add(GROUP * operands.sub_scale_bytes),
                    scales: operands.scales.wrapping_add(SCALES_BYTES),
                    ..operands
                }
            }
        };
        while panel + 8 <= count {
            pairs_many_tokens::<Q4, 4>(operands.panel(panel), next(panel, 8));
            panel += 8;
        }
        while panel + 2 <= count {
            pairs_many_tokens::<Q4, 1>(operands.panel(panel), next(panel, 2));
            panel += 2;
        }
        if panel < count && Q4 {
            q4_avx512::panels(operands.panel(panel), 1);
        } else if panel < count {
            q8_avx512::panels(operands.panel(panel), 1);
        }
    }
}
