//! Kernels for x86-64: AVX2, AVX-VNNI and AVX-512 with VNNI.
//!
//! The products with quantized weights keep a block of a panel, unpacked, in 8 registers (input `4 i + j` of row `r` in
//! byte `4 r + j` of register `i`), and go over the tokens of the tile: 4 activations are broadcast, multiplied with 8
//! rows, and summed without leaving the integers until the group is done.
//! - AVX2, q4: weights as 0..=15, `vpmaddubsw` into 16 bits, where 8 additions fit: 2 instructions per 32 products. The
//!   offset `-4 * sum` in each of a row's two 16-bit sums makes `-8 * sum`; with it, the final sums are at most
//!   `11 * 127 * 16 + 4 * 127 * 16 = 30480`, and what happens in between wraps harmlessly. `vpmaddwd` then multiplies with
//!   the level where it has to add pairs anyway.
//! - AVX2, q8: `vpmaddubsw` saturates at 32767, and weights take all 8 bits, so that activations are given 7:
//!   `(x + 64) * w`, at most `2 * 127 * 127 = 32258`. The offset `-64 * sum(w)` is computed once per block. (Activations
//!   of 8 bits would need `vpsignb` for each product, a third more instructions.)
//! - VNNI: `vpdpbusd` with the weights as unsigned bytes (q4: 0..=15; q8: `w + 128`), the offset as the initial sum.
//! - AVX-512 takes two panels in a register, and for many tokens makes q8 of q4 first (`level * q + 128`), so that a
//!   product is nothing but one load and one `vpdpbusd`.
#![allow(unsafe_code)]
// Arrays of registers are indexed side by side; the operands of a tile are passed one by one to stay in registers.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

use crate::activation::Activation;
use crate::cpu::{ActivationCode, Isa, Kernels, Panels, Strided, TILE_TOKENS, Tile};
use crate::element::Element;
use crate::format::{BLOCK, Format, GROUP, PANEL, SCALES_BYTES};
use crate::generic::row_kernels;
use crate::tile::{Operands, check_matmul, row_tiles};
use half::f16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2;

/// [`Avx2`] with the 256-bit dot product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni;

/// AVX-512 with the 512-bit dot product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni;

/// The kernels for an instruction set, if it is one of x86-64 and this machine has it.
pub(crate) fn find(isa: Isa) -> Option<&'static dyn Kernels> {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match isa {
        Isa::Avx2 if avx2 => Some(&Avx2),
        Isa::AvxVnni if avx2 && is_x86_feature_detected!("avxvnni") => Some(&AvxVnni),
        Isa::Avx512Vnni if avx2 && avx512 => Some(&Avx512Vnni),
        _ => None,
    }
}

/// The four activations at `x`, in every 32 bits.
///
/// # Safety
/// Four bytes at `x` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast4(x: *const u8) -> __m256i {
    // SAFETY: as promised by the caller; the read is unaligned.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

/// The 8 vectors of a q4 block, as bytes 0..=15.
///
/// # Safety
/// A block's 128 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn unpack_q4(quants: *const u8) -> [__m256i; 8] {
    let low = _mm256_set1_epi8(15);
    let mut w = [_mm256_setzero_si256(); 8];
    for v in 0..4 {
        // SAFETY: four vectors of 32 bytes, as promised by the caller.
        let both = unsafe { _mm256_loadu_si256(quants.add(32 * v).cast()) };
        w[2 * v] = _mm256_and_si256(both, low);
        w[2 * v + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
    w
}

/// The 8 vectors of a q8 block.
///
/// # Safety
/// A block's 256 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_q8(quants: *const u8) -> [__m256i; 8] {
    let mut w = [_mm256_setzero_si256(); 8];
    for (v, w) in w.iter_mut().enumerate() {
        // SAFETY: eight vectors of 32 bytes, as promised by the caller.
        *w = unsafe { _mm256_loadu_si256(quants.add(32 * v).cast()) };
    }
    w
}

/// The 8 vectors of a q8 block, as `w + 128`.
///
/// # Safety
/// A block's 256 bytes at `quants` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_q8_unsigned(quants: *const u8) -> [__m256i; 8] {
    // SAFETY: as promised by the caller.
    let mut w = unsafe { load_q8(quants) };
    for w in &mut w {
        *w = _mm256_xor_si256(*w, _mm256_set1_epi8(-128));
    }
    w
}

/// 8 half-precision numbers.
///
/// # Safety
/// 16 bytes at `halves` must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_halves(halves: *const u8) -> __m256 {
    // SAFETY: as promised by the caller.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.cast()) })
}

/// Asks for the cache lines of `BYTES` bytes, into the second cache: they are needed only when the next panels have their
/// turn.
#[inline(always)]
fn prefetch<const BYTES: usize>(address: *const u8) {
    for line in (0..BYTES).step_by(64) {
        // SAFETY: a prefetch of any address is harmless, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.wrapping_add(line).cast()) };
    }
}

/// Asks for the levels and scales of a group of a panel that is needed later.
#[inline(always)]
fn prefetch_header<const AHEAD: usize>(operands: &Operands) {
    if AHEAD > 0 {
        for address in operands.header_ahead(AHEAD) {
            prefetch::<64>(address);
        }
    }
}

/// The sum so far plus `sums * (w_scale * x_scale)`, for 8 rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn scaled(sums: __m256i, w_scale: __m256, x_scale: f32, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(
        _mm256_cvtepi32_ps(sums),
        _mm256_mul_ps(w_scale, _mm256_set1_ps(x_scale)),
        acc,
    )
}

/// 8 levels, in 32 bits.
///
/// # Safety
/// 8 bytes at `levels` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_levels(levels: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(levels.cast()) })
}

/// 8 levels, each twice in 16 bits.
///
/// # Safety
/// 8 bytes at `levels` must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_level_pairs(levels: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    let levels = unsafe { load_levels(levels) };
    _mm256_blend_epi16::<0xaa>(levels, _mm256_slli_epi32::<16>(levels))
}

/// Of a format that has no levels.
///
/// # Safety
/// Always safe.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn no_levels(_: *const u8) -> __m256i {
    _mm256_setzero_si256()
}

/// Defines a module with the products of one format in 256-bit registers, from
/// - `unpack`: the 8 vectors of a block,
/// - `levels`: its levels,
/// - `constant(w)`: what depends on the weights alone,
/// - `start(constant, offset)`: the initial sums of a token,
/// - `step(sums, w, x)`: adds the products of a vector and 4 activations,
/// - `finish(a, b, levels)`: the sums of the 8 rows, from two chains of steps (one alone would take too long for the dot
///   product instructions, which wait for each other).
macro_rules! products {
    ($name:ident, $features:literal, $bytes:literal, $unpack:ident, $levels:ident, $constant:expr, $start:expr, $step:expr, $finish:expr) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The operands must be as [`Operands::new`] gives them.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn panels(operands: Operands, count: usize) {
                // SAFETY: as promised by the caller.
                unsafe {
                    let mut panel = 0;
                    if operands.tokens == 1 {
                        while panel + 2 <= count {
                            if panel + 4 <= count {
                                one_token::<2, 2>(operands.panel(panel));
                            } else {
                                one_token::<2, 0>(operands.panel(panel));
                            }
                            panel += 2;
                        }
                        if panel < count {
                            one_token::<1, 0>(operands.panel(panel));
                        }
                    } else {
                        while panel < count {
                            many_tokens(operands.panel(panel));
                            panel += 1;
                        }
                    }
                }
            }

            /// # Safety
            /// The operands must be as [`Operands::new`] gives them.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn many_tokens(mut operands: Operands) {
                let mut group = [_mm256_setzero_si256(); TILE_TOKENS];
                // SAFETY: as promised by the caller.
                unsafe {
                    while operands.blocks > 0 {
                        for block in 0..operands.group_blocks() {
                            prefetch::<$bytes>(operands.ahead(1));
                            let w = $unpack(operands.quants);
                            let levels = $levels(operands.levels);
                            let constant = $constant(w);
                            for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                                let x = operands.x.add(BLOCK * t);
                                let offset = *operands.x_offset.add(t);
                                let mut sums = [$start(constant, offset), _mm256_setzero_si256()];
                                for (i, w) in w.into_iter().enumerate() {
                                    sums[i % 2] = $step(sums[i % 2], w, broadcast4(x.add(4 * i)));
                                }
                                let sums = $finish(sums[0], sums[1], levels);
                                *group = if block == 0 {
                                    sums
                                } else {
                                    _mm256_add_epi32(*group, sums)
                                };
                            }
                            operands.advance_block();
                        }
                        let w_scale = load_halves(operands.scales);
                        for (t, group) in group.iter().enumerate().take(operands.tokens) {
                            let acc = operands.acc.add(t * operands.stride);
                            let x_scale = *operands.x_scale.add(t);
                            let sum = scaled(*group, w_scale, x_scale, _mm256_loadu_ps(acc));
                            _mm256_storeu_ps(acc, sum);
                        }
                        operands.advance_group();
                    }
                }
            }

            /// `N` panels with one token: the sums stay in registers. The panels that are needed next are `AHEAD` panels
            /// further on; 0 if none are, because what others need should not be read here.
            ///
            /// # Safety
            /// The operands must be as [`Operands::new`] gives them, with `N - 1` panels after this one.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn one_token<const N: usize, const AHEAD: usize>(mut operands: Operands) {
                // SAFETY: as promised by the caller.
                unsafe {
                    let mut acc = [_mm256_setzero_ps(); N];
                    for p in 0..N {
                        acc[p] = _mm256_loadu_ps(operands.acc.add(p * PANEL));
                    }
                    while operands.blocks > 0 {
                        let mut group = [_mm256_setzero_si256(); N];
                        for p in 0..N {
                            prefetch_header::<AHEAD>(&operands.panel(p));
                        }
                        for _ in 0..operands.group_blocks() {
                            let mut sums = [[_mm256_setzero_si256(); 2]; N];
                            let mut w = [[_mm256_setzero_si256(); 8]; N];
                            for p in 0..N {
                                let panel = operands.panel(p);
                                if AHEAD > 0 {
                                    prefetch::<$bytes>(panel.ahead(AHEAD));
                                }
                                w[p] = $unpack(panel.quants);
                                sums[p][0] = $start($constant(w[p]), *operands.x_offset);
                            }
                            for i in 0..8 {
                                let x = broadcast4(operands.x.add(4 * i));
                                for p in 0..N {
                                    sums[p][i % 2] = $step(sums[p][i % 2], w[p][i], x);
                                }
                            }
                            for p in 0..N {
                                let levels = $levels(operands.panel(p).levels);
                                let sums = $finish(sums[p][0], sums[p][1], levels);
                                group[p] = _mm256_add_epi32(group[p], sums);
                            }
                            operands.advance_block();
                        }
                        for p in 0..N {
                            let w_scale = load_halves(operands.panel(p).scales);
                            acc[p] = scaled(group[p], w_scale, *operands.x_scale, acc[p]);
                        }
                        operands.advance_group();
                    }
                    for p in 0..N {
                        _mm256_storeu_ps(operands.acc.add(p * PANEL), acc[p]);
                    }
                }
            }
        }
    };
}

products!(
    q4_avx2,
    "avx2,fma,f16c",
    128,
    unpack_q4,
    load_level_pairs,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)),
    |a, b, levels| _mm256_madd_epi16(_mm256_add_epi16(a, b), levels)
);
products!(
    q8_avx2,
    "avx2,fma,f16c",
    256,
    load_q8,
    no_levels,
    |w: [__m256i; 8]| {
        let mut sums = _mm256_setzero_si256();
        for w in w {
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), w));
        }
        _mm256_madd_epi16(sums, _mm256_set1_epi16(-64))
    },
    |constant, _| constant,
    |sums, w, x| {
        let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1));
        _mm256_add_epi32(sums, pairs)
    },
    |a, b, _| _mm256_add_epi32(a, b)
);
products!(
    q4_avxvnni,
    "avx2,fma,f16c,avxvnni",
    128,
    unpack_q4,
    load_levels,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_avx_epi32(sums, w, x),
    |a, b, levels| _mm256_mullo_epi32(_mm256_add_epi32(a, b), levels)
);
products!(
    q8_avxvnni,
    "avx2,fma,f16c,avxvnni",
    256,
    load_q8_unsigned,
    no_levels,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_avx_epi32(sums, w, x),
    |a, b, _| _mm256_add_epi32(a, b)
);
products!(
    q4_avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    128,
    unpack_q4,
    load_levels,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b, levels| _mm256_mullo_epi32(_mm256_add_epi32(a, b), levels)
);
products!(
    q8_avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    256,
    load_q8_unsigned,
    no_levels,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b, _| _mm256_add_epi32(a, b)
);

/// Two registers of 256 bits as one.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// A block of two panels, 16 rows: 64 bytes of each vector.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with one more panel after this one; `v` must be one of the
/// block's vectors.
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

/// The levels of a block of two panels, in 32 bits.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with one more panel after this one.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
unsafe fn load_pair_levels(operands: &Operands) -> __m512i {
    // SAFETY: as promised by the caller.
    unsafe {
        join(
            load_levels(operands.levels),
            load_levels(operands.panel(1).levels),
        )
    }
}

/// The scales of a group of two panels.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with one more panel after this one.
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

/// Asks for the weights of two panels that are needed next.
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

/// The 8 vectors of a q4 block of two panels, as bytes 0..=15.
///
/// # Safety
/// As [`load_pair`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
unsafe fn unpack_pair(operands: &Operands) -> [__m512i; 8] {
    let low = _mm512_set1_epi8(15);
    let mut w = [_mm512_setzero_si512(); 8];
    for v in 0..4 {
        // SAFETY: as promised by the caller.
        let both = unsafe { load_pair(operands, v) };
        w[2 * v] = _mm512_and_si512(both, low);
        w[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
    }
    w
}

/// The 8 vectors of a block of two panels, as `w + 128`, those of q4 multiplied with their levels.
///
/// # Safety
/// As [`load_pair`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
unsafe fn expand_pair<const Q4: bool>(operands: &Operands) -> [__m512i; 8] {
    // SAFETY: as promised by the caller.
    unsafe {
        if Q4 {
            // (n - 8) * level + 128 for every nibble n, modulo 256; the level stands in all four bytes of its row.
            let levels = load_pair_levels(operands);
            let levels = _mm512_or_si512(
                _mm512_slli_epi32::<16>(levels),
                _mm512_and_si512(levels, _mm512_set1_epi32(0xffff)),
            );
            let (even, odd) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(!0xff));
            let times = |w: __m512i| {
                let odd = _mm512_mullo_epi16(_mm512_and_si512(w, odd), levels);
                let even = _mm512_mullo_epi16(_mm512_and_si512(w, even), levels);
                _mm512_mask_blend_epi8(0x5555_5555_5555_5555, odd, even)
            };
            let bias = _mm512_sub_epi8(_mm512_set1_epi8(-128), times(_mm512_set1_epi8(8)));
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

/// `P` pairs of panels with many tokens, six at a time, each with a whole group: their sums stay in registers, and the
/// group's weights, of q4 multiplied with their levels, come from the first cache. `next` has the panels and the group that
/// are needed next, and is only read ahead.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with `2 P - 1` more panels after this one.
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
                prefetch::<64>(next.panel(panel).levels);
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
            while t + 6 <= first.tokens {
                pairs_tokens::<Q4, P, 6>(&first, t, w, &w_scale);
                t += 6;
            }
            while t + 2 <= first.tokens {
                pairs_tokens::<Q4, P, 2>(&first, t, w, &w_scale);
                t += 2;
            }
            if t < first.tokens {
                pairs_tokens::<Q4, P, 1>(&first, t, w, &w_scale);
            }
            operands.advance_group();
            next.levels = next.levels.wrapping_add(GROUP * next.level_bytes);
            next.scales = next.scales.wrapping_add(SCALES_BYTES);
        }
    }
}

/// `T` tokens from `first` on with a group of weights, as [`expand_pair`] gives them.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with so many tokens and `2 P - 1` more panels after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pairs_tokens<const Q4: bool, const P: usize, const T: usize>(
    operands: &Operands,
    first: usize,
    w: &[[[__m512i; P]; 8]],
    w_scale: &[__m512; P],
) {
    // What a token's offsets have to be multiplied with to make -128 times the sum of its quants.
    let offset_factor = if Q4 { 16 } else { 1 };
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

/// A pair of panels with one token: the sums stay in registers, and q4 needs no more than its nibbles. The panels that are
/// needed next are `AHEAD` panels further on; 0 if none are, because what others need should not be read here.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with one more panel after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pair_one_token<const Q4: bool, const AHEAD: usize>(mut operands: Operands) {
    // SAFETY: as promised by the caller; the reads of activations are unaligned.
    unsafe {
        let mut acc = _mm512_loadu_ps(operands.acc);
        while operands.blocks > 0 {
            let mut group = _mm512_setzero_si512();
            prefetch_header::<AHEAD>(&operands);
            prefetch_header::<AHEAD>(&operands.panel(1));
            for _ in 0..operands.group_blocks() {
                prefetch_pair::<Q4, AHEAD>(&operands);
                let x = operands.x.cast::<i32>();
                let w = if Q4 {
                    unpack_pair(&operands)
                } else {
                    expand_pair::<Q4>(&operands)
                };
                let offset = _mm512_set1_epi32(*operands.x_offset);
                let mut sums = [offset, _mm512_setzero_si512()];
                for (i, w) in w.into_iter().enumerate() {
                    let x = _mm512_set1_epi32(x.add(i).read_unaligned());
                    sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], w, x);
                }
                let mut sum = _mm512_add_epi32(sums[0], sums[1]);
                if Q4 {
                    sum = _mm512_mullo_epi32(sum, load_pair_levels(&operands));
                }
                group = _mm512_add_epi32(group, sum);
                operands.advance_block();
            }
            let x_scale = _mm512_set1_ps(*operands.x_scale);
            let scale = _mm512_mul_ps(load_pair_scales(&operands), x_scale);
            acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group), scale, acc);
            operands.advance_group();
        }
        _mm512_storeu_ps(operands.acc, acc);
    }
}

/// All panels, two by two, for many tokens eight by eight.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, for `count` panels.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn panels_avx512<const Q4: bool>(operands: Operands, count: usize) {
    let one = operands.tokens == 1;
    // SAFETY: as promised by the caller.
    unsafe {
        let mut panel = 0;
        // After the last panels, the first ones have their turn again with the next group, if that is another call's.
        let next = |panel: usize, step: usize| {
            if panel + 2 * step <= count {
                operands.panel(panel + step)
            } else if operands.blocks > GROUP {
                operands.panel(panel)
            } else {
                Operands {
                    quants: operands.quants.wrapping_add(GROUP * operands.block_bytes),
                    levels: operands.levels.wrapping_add(GROUP * operands.level_bytes),
                    scales: operands.scales.wrapping_add(SCALES_BYTES),
                    ..operands
                }
            }
        };
        while !one && panel + 8 <= count {
            pairs_many_tokens::<Q4, 4>(operands.panel(panel), next(panel, 8));
            panel += 8;
        }
        while panel + 2 <= count {
            if one {
                if panel + 4 <= count {
                    pair_one_token::<Q4, 2>(operands.panel(panel));
                } else {
                    pair_one_token::<Q4, 0>(operands.panel(panel));
                }
            } else {
                pairs_many_tokens::<Q4, 1>(operands.panel(panel), next(panel, 2));
            }
            panel += 2;
        }
        if panel < count && Q4 {
            q4_avx512::panels(operands.panel(panel), 1);
        } else if panel < count {
            q8_avx512::panels(operands.panel(panel), 1);
        }
    }
}

/// 8 numbers in single precision.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_8<T: Element>(numbers: *const T) -> __m256 {
    // SAFETY: as promised by the caller.
    unsafe {
        if T::HALF {
            load_halves(numbers.cast())
        } else {
            _mm256_loadu_ps(numbers.cast())
        }
    }
}

/// 16 numbers in single precision.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_16<T: Element>(numbers: *const T) -> __m512 {
    // SAFETY: as promised by the caller.
    unsafe {
        if T::HALF {
            _mm512_cvtph_ps(_mm256_loadu_si256(numbers.cast()))
        } else {
            _mm512_loadu_ps(numbers.cast())
        }
    }
}

/// `R` rows and `V` vectors of 8 columns of a product, in registers.
///
/// # Safety
/// `a` must be readable for `R` rows of `k`, `b` for `k` rows and `c` writable for `R` rows of `8 V` columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<const R: usize, const V: usize, T: Element>(
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
        let mut acc = [[_mm256_setzero_ps(); V]; R];
        for r in 0..if add { R } else { 0 } {
            for v in 0..V {
                acc[r][v] = _mm256_loadu_ps(c.add(r * c_stride + 8 * v));
            }
        }
        for p in 0..k {
            let mut row = [_mm256_setzero_ps(); V];
            for (v, row) in row.iter_mut().enumerate() {
                *row = load_8(b.add(p * b_stride + 8 * v));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(r * a_stride + p));
                for v in 0..V {
                    acc[v] = _mm256_fmadd_ps(x, row[v], acc[v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm256_storeu_ps(c.add(r * c_stride + 8 * v), acc[r][v]);
            }
        }
    }
}

/// `R` rows and `V` vectors of 16 columns of a product, in registers.
///
/// # Safety
/// `a` must be readable for `R` rows of `k`, `b` for `k` rows and `c` writable for `R` rows of `16 V` columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const R: usize, const V: usize, T: Element>(
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
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        for r in 0..if add { R } else { 0 } {
            for v in 0..V {
                acc[r][v] = _mm512_loadu_ps(c.add(r * c_stride + 16 * v));
            }
        }
        for p in 0..k {
            let mut row = [_mm512_setzero_ps(); V];
            for (v, row) in row.iter_mut().enumerate() {
                *row = load_16(b.add(p * b_stride + 16 * v));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * a_stride + p));
                for v in 0..V {
                    acc[v] = _mm512_fmadd_ps(x, row[v], acc[v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(c.add(r * c_stride + 16 * v), acc[r][v]);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn matmul_avx2<T: Element>(
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
            row_tiles!(tile_avx2, T, 2, [1 2 3 4 5 6], 6, m, k, a, b, add, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, T, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, add, c, j);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn matmul_avx512<T: Element>(
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
        while j + 32 <= n {
            row_tiles!(tile_avx512, T, 2, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, add, c, j);
            j += 32;
        }
        while j + 16 <= n {
            row_tiles!(tile_avx512, T, 1, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, add, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, T, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, add, c, j);
        }
    }
}

/// Eight weights of one input as floats.
///
/// # Safety
/// 8 weights of the format must be readable at `w`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_weights<const HALF: bool>(w: *const u8) -> __m256 {
    // SAFETY: as promised by the caller.
    unsafe {
        if HALF {
            load_halves(w)
        } else {
            _mm256_loadu_ps(w.cast())
        }
    }
}

/// `N` panels with one token, so that `N` chains of additions are under way at a time.
///
/// # Safety
/// `panels` must be readable for `N` panels of `x.len()` inputs, `acc` writable for `8 N` floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemv_avx2<const N: usize, const HALF: bool>(
    panels: *const u8,
    panel_bytes: usize,
    x: &[f32],
    acc: *mut f32,
) {
    let size = if HALF { 2 * PANEL } else { 4 * PANEL };
    let mut sums = [_mm256_setzero_ps(); N];
    for (i, x) in x.iter().enumerate() {
        let x = _mm256_set1_ps(*x);
        for (p, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as promised by the caller.
            let w = unsafe { load_weights::<HALF>(panels.add(p * panel_bytes + i * size)) };
            *sums = _mm256_fmadd_ps(x, w, *sums);
        }
    }
    for (p, sums) in sums.into_iter().enumerate() {
        // SAFETY: as promised by the caller.
        unsafe { _mm256_storeu_ps(acc.add(p * PANEL), sums) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
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
            gemv_avx2::<4, HALF>(
                panels[p * panel_bytes..].as_ptr(),
                panel_bytes,
                x,
                acc[p * PANEL..].as_mut_ptr(),
            );
            p += 4;
        }
        while p < count {
            gemv_avx2::<1, HALF>(
                panels[p * panel_bytes..].as_ptr(),
                panel_bytes,
                x,
                acc[p * PANEL..].as_mut_ptr(),
            );
            p += 1;
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn widen(halves: &[u8], out: &mut [f32]) {
    assert_eq!(halves.len(), 2 * out.len(), "two bytes per number");
    let whole = out.len() / 8 * 8;
    for i in (0..whole).step_by(8) {
        // SAFETY: 8 numbers from `i` on are in both slices.
        unsafe {
            _mm256_storeu_ps(
                out.as_mut_ptr().add(i),
                load_halves(halves.as_ptr().add(2 * i)),
            )
        };
    }
    crate::generic::widen(&halves[2 * whole..], &mut out[whole..]);
}

/// `vpmaddubsw` and additions in 16 bits.
#[target_feature(enable = "avx2")]
fn spin_q4_avx2(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm0, ymm0, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm1, ymm1, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm2, ymm2, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm3, ymm3, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm4, ymm4, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm5, ymm5, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm6, ymm6, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpaddw ymm7, ymm7, ymm13",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("ymm14") _mm256_set1_epi8(3), in("ymm15") _mm256_set1_epi8(5),
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm13") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 512
}

/// `vpmaddubsw`, `vpmaddwd` and additions in 32 bits.
#[target_feature(enable = "avx2")]
fn spin_q8_avx2(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm0, ymm0, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm1, ymm1, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm2, ymm2, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm3, ymm3, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm4, ymm4, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm5, ymm5, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm6, ymm6, ymm13",
            "vpmaddubsw ymm13, ymm14, ymm15",
            "vpmaddwd ymm13, ymm13, ymm14",
            "vpaddd ymm7, ymm7, ymm13",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("ymm14") _mm256_set1_epi8(3), in("ymm15") _mm256_set1_epi8(5),
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm13") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 512
}

/// Fused multiply-adds of 8 floats.
#[target_feature(enable = "avx2,fma")]
fn spin_float_avx2(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "vfmadd231ps ymm0, ymm14, ymm15",
            "vfmadd231ps ymm1, ymm14, ymm15",
            "vfmadd231ps ymm2, ymm14, ymm15",
            "vfmadd231ps ymm3, ymm14, ymm15",
            "vfmadd231ps ymm4, ymm14, ymm15",
            "vfmadd231ps ymm5, ymm14, ymm15",
            "vfmadd231ps ymm6, ymm14, ymm15",
            "vfmadd231ps ymm7, ymm14, ymm15",
            "vfmadd231ps ymm8, ymm14, ymm15",
            "vfmadd231ps ymm9, ymm14, ymm15",
            "vfmadd231ps ymm10, ymm14, ymm15",
            "vfmadd231ps ymm11, ymm14, ymm15",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("ymm14") _mm256_set1_ps(0.5), in("ymm15") _mm256_set1_ps(0.25),
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 192
}

/// Dot products of 32 bytes.
#[target_feature(enable = "avx2,avxvnni")]
fn spin_avxvnni(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "{{vex}} vpdpbusd ymm0, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm1, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm2, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm3, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm4, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm5, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm6, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm7, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm8, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm9, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm10, ymm14, ymm15",
            "{{vex}} vpdpbusd ymm11, ymm14, ymm15",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("ymm14") _mm256_set1_epi8(3), in("ymm15") _mm256_set1_epi8(5),
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 768
}

/// Dot products of 64 bytes.
#[target_feature(enable = "avx512f,avx512vnni")]
fn spin_avx512vnni(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "vpdpbusd zmm0, zmm14, zmm15",
            "vpdpbusd zmm1, zmm14, zmm15",
            "vpdpbusd zmm2, zmm14, zmm15",
            "vpdpbusd zmm3, zmm14, zmm15",
            "vpdpbusd zmm4, zmm14, zmm15",
            "vpdpbusd zmm5, zmm14, zmm15",
            "vpdpbusd zmm6, zmm14, zmm15",
            "vpdpbusd zmm7, zmm14, zmm15",
            "vpdpbusd zmm8, zmm14, zmm15",
            "vpdpbusd zmm9, zmm14, zmm15",
            "vpdpbusd zmm10, zmm14, zmm15",
            "vpdpbusd zmm11, zmm14, zmm15",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("zmm14") _mm512_set1_epi8(3), in("zmm15") _mm512_set1_epi8(5),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 1536
}

/// Fused multiply-adds of 16 floats.
#[target_feature(enable = "avx512f")]
fn spin_float_avx512(rounds: u32) -> u64 {
    // SAFETY: instructions on registers, of features that this function requires.
    unsafe {
        asm!(
            "2:",
            "vfmadd231ps zmm0, zmm14, zmm15",
            "vfmadd231ps zmm1, zmm14, zmm15",
            "vfmadd231ps zmm2, zmm14, zmm15",
            "vfmadd231ps zmm3, zmm14, zmm15",
            "vfmadd231ps zmm4, zmm14, zmm15",
            "vfmadd231ps zmm5, zmm14, zmm15",
            "vfmadd231ps zmm6, zmm14, zmm15",
            "vfmadd231ps zmm7, zmm14, zmm15",
            "vfmadd231ps zmm8, zmm14, zmm15",
            "vfmadd231ps zmm9, zmm14, zmm15",
            "vfmadd231ps zmm10, zmm14, zmm15",
            "vfmadd231ps zmm11, zmm14, zmm15",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            in("zmm14") _mm512_set1_ps(0.5), in("zmm15") _mm512_set1_ps(0.25),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            options(nomem, nostack),
        );
    }
    u64::from(rounds.max(1)) * 384
}

/// The methods that all three have in common.
macro_rules! avx2_kernels {
    () => {
        fn float_gemv(
            &self,
            format: Format,
            panels: &[u8],
            panel_bytes: usize,
            x: &[f32],
            acc: &mut [f32],
        ) {
            // SAFETY: `find` hands these kernels out only on machines with AVX2, FMA and F16C.
            unsafe {
                if format == Format::F16 {
                    float_gemv::<true>(panels, panel_bytes, x, acc)
                } else {
                    float_gemv::<false>(panels, panel_bytes, x, acc)
                }
            }
        }

        fn widen(&self, halves: &[u8], out: &mut [f32]) {
            // SAFETY: `find` hands these kernels out only on machines with AVX2 and F16C.
            unsafe { widen(halves, out) }
        }
    };
}

impl Kernels for Avx2 {
    fn isa(&self) -> Isa {
        Isa::Avx2
    }

    fn code(&self, format: Format) -> ActivationCode {
        if format == Format::Q4 {
            ActivationCode {
                limit: 127.0,
                bias: 0,
                offset: -4,
                pairs: true,
            }
        } else {
            ActivationCode {
                limit: 63.0,
                bias: 64,
                offset: 0,
                pairs: false,
            }
        }
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let operands = Operands::new(panels, range, tile, acc);
        // SAFETY: the operands are checked, and `find` hands these kernels out only on machines with these features.
        unsafe {
            match panels.format {
                Format::Q4 => q4_avx2::panels(operands, panels.count()),
                _ => q8_avx2::panels(operands, panels.count()),
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, add, c, c_stride) }
    }

    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, false, c, c_stride) }
    }

    avx2_kernels!();
    row_kernels!(true, "avx2,fma");

    fn spin(&self, format: Format, rounds: u32) -> Option<u64> {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        Some(unsafe {
            match format {
                Format::Q4 => spin_q4_avx2(rounds),
                Format::Q8 => spin_q8_avx2(rounds),
                Format::F16 | Format::F32 => spin_float_avx2(rounds),
            }
        })
    }
}

/// For the dot product instructions: signed activations, weights `w + 8` or `w + 128`.
fn vnni_code(format: Format) -> ActivationCode {
    let offset = if format == Format::Q4 { -8 } else { -128 };
    ActivationCode {
        limit: 127.0,
        bias: 0,
        offset,
        pairs: false,
    }
}

impl Kernels for AvxVnni {
    fn isa(&self) -> Isa {
        Isa::AvxVnni
    }

    fn code(&self, format: Format) -> ActivationCode {
        vnni_code(format)
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let operands = Operands::new(panels, range, tile, acc);
        // SAFETY: the operands are checked, and `find` hands these kernels out only on machines with these features.
        unsafe {
            match panels.format {
                Format::Q4 => q4_avxvnni::panels(operands, panels.count()),
                _ => q8_avxvnni::panels(operands, panels.count()),
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, add, c, c_stride) }
    }

    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, false, c, c_stride) }
    }

    avx2_kernels!();
    row_kernels!(true, "avx2,fma");

    fn spin(&self, format: Format, rounds: u32) -> Option<u64> {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        Some(unsafe {
            match format {
                Format::Q4 => spin_avxvnni(rounds),
                Format::Q8 => spin_avxvnni(rounds),
                Format::F16 | Format::F32 => spin_float_avx2(rounds),
            }
        })
    }
}

impl Kernels for Avx512Vnni {
    fn isa(&self) -> Isa {
        Isa::Avx512Vnni
    }

    fn code(&self, format: Format) -> ActivationCode {
        vnni_code(format)
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        let operands = Operands::new(panels, range, tile, acc);
        // SAFETY: the operands are checked, and `find` hands these kernels out only on machines with these features.
        unsafe {
            match panels.format {
                Format::Q4 => panels_avx512::<true>(operands, panels.count()),
                _ => panels_avx512::<false>(operands, panels.count()),
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx512(size, a, b, add, c, c_stride) }
    }

    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx512(size, a, b, false, c, c_stride) }
    }

    avx2_kernels!();
    row_kernels!(true, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma");

    fn spin(&self, format: Format, rounds: u32) -> Option<u64> {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        Some(unsafe {
            match format {
                Format::Q4 => spin_avx512vnni(rounds),
                Format::Q8 => spin_avx512vnni(rounds),
                Format::F16 | Format::F32 => spin_float_avx512(rounds),
            }
        })
    }
}
