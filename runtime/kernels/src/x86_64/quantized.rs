//! Products with quantized weights in 256-bit registers.
//!
//! A block of a panel is unpacked into 8 registers: byte `4 r + j` of register `i` is the weight of row
//! `r` and input `4 i + j`. For each token of the tile, 4 activations are broadcast and multiplied by
//! 8 rows. Sums stay in integers until the end of the group.
//! - AVX2, q4: the weights are bytes `level + 16`. `vpmaddubsw` sums in 16 bits, which hold 8 additions: 2
//!   instructions per 32 products. The offset `-16` times the sum of the 16 activations of each 16-bit sum
//!   makes the weights signed; the final sums are at most `10 * 127 * 16 = 20320`, and intermediate sums
//!   wrap harmlessly. `vpmaddwd` then multiplies by the sub-block scale while it adds the pairs.
//! - AVX2, q8: `vpmaddubsw` saturates at 32767 and weights use all 8 bits, so activations get 7 bits:
//!   `(x + 64) * w`, at most `2 * 127 * 127 = 32258`. The offset `-64 * sum(w)` is computed once per
//!   block. Activations of 8 bits would need a `vpsignb` per product, a third more instructions.
//! - VNNI: `vpdpbusd` with unsigned weights (q4: `level + 16`; q8: `w + 128`) and the offset as initial sum.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::load::{
    LEVEL_BIAS, broadcast4, load_halves, load_q8, load_q8_unsigned, load_sub_scale_pairs,
    load_sub_scales, no_sub_scales, prefetch, prefetch_header, scaled, unpack_q4,
};
use crate::cpu::{ActivationScheme, TILE_TOKENS};
use crate::format::{BLOCK, PANEL, QuantFormat};
use crate::operands::Operands;
use std::arch::x86_64::*;

/// Quantization of activations for the AVX2 products.
pub(super) fn avx2_scheme(format: QuantFormat) -> ActivationScheme {
    match format {
        QuantFormat::Q8 => ActivationScheme {
            max_quant: 63.0,
            bias: 64,
            offset_factor: 0,
            offset_pairs: false,
        },
        QuantFormat::Q4 => ActivationScheme {
            offset_pairs: true,
            ..ActivationScheme::signed(-LEVEL_BIAS)
        },
    }
}

/// Quantization of activations for the VNNI products: signed, because the weights are unsigned.
pub(super) fn vnni_scheme(format: QuantFormat) -> ActivationScheme {
    match format {
        QuantFormat::Q8 => ActivationScheme::signed(-128),
        QuantFormat::Q4 => ActivationScheme::signed(-LEVEL_BIAS),
    }
}

/// Defines a module with the products of one format in 256-bit registers:
/// - `unpack`: loads the 8 vectors of a block,
/// - `sub_scales`: loads its sub-block scales,
/// - `constant(w)`: the part of the initial sums that depends on the weights alone,
/// - `start(constant, offset)`: the initial sums of a token,
/// - `step(sums, w, x)`: adds the products of a vector and 4 activations,
/// - `finish(a, b, sub_scales)`: the sums of the 8 rows from two chains of steps. Two chains hide the
///   latency of the dot product instructions.
macro_rules! products {
    ($name:ident, $features:literal, $bytes:literal, $unpack:ident, $sub_scales:ident, $constant:expr, $start:expr, $step:expr, $finish:expr) => {
        pub(super) mod $name {
            use super::*;

            /// Multiplies `count` panels by a tile.
            ///
            /// # Safety
            /// The operands must be those of [`Operands::new`], for `count` panels.
            #[target_feature(enable = $features)]
            pub(in crate::x86_64) unsafe fn panels(operands: Operands, count: usize) {
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

            /// Multiplies a panel by a tile. The weights of a block stay in registers for all tokens.
            ///
            /// # Safety
            /// The operands must be those of [`Operands::new`].
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
                            let sub_scales = $sub_scales(operands.sub_scales);
                            let constant = $constant(w);
                            for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                                let x = operands.x.add(BLOCK * t);
                                let offset = *operands.x_offset.add(t);
                                let mut sums = [$start(constant, offset), _mm256_setzero_si256()];
                                for (i, w) in w.into_iter().enumerate() {
                                    sums[i % 2] = $step(sums[i % 2], w, broadcast4(x.add(4 * i)));
                                }
                                let sums = $finish(sums[0], sums[1], sub_scales);
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

            /// Multiplies `N` panels by one token, with the sums in registers. Prefetches the panels
            /// `AHEAD` panels ahead, unless `AHEAD` is 0: the panels after the last ones belong to another
            /// task.
            ///
            /// # Safety
            /// The operands must be those of [`Operands::new`], with `N - 1` panels after this one.
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
                                let sub_scales = $sub_scales(operands.panel(p).sub_scales);
                                let sums = $finish(sums[p][0], sums[p][1], sub_scales);
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
    load_sub_scale_pairs,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)),
    |a, b, sub_scales| _mm256_madd_epi16(_mm256_add_epi16(a, b), sub_scales)
);
products!(
    q8_avx2,
    "avx2,fma,f16c",
    256,
    load_q8,
    no_sub_scales,
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
    load_sub_scales,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_avx_epi32(sums, w, x),
    |a, b, sub_scales| _mm256_mullo_epi32(_mm256_add_epi32(a, b), sub_scales)
);
products!(
    q8_avxvnni,
    "avx2,fma,f16c,avxvnni",
    256,
    load_q8_unsigned,
    no_sub_scales,
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
    load_sub_scales,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b, sub_scales| _mm256_mullo_epi32(_mm256_add_epi32(a, b), sub_scales)
);
products!(
    q8_avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    256,
    load_q8_unsigned,
    no_sub_scales,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b, _| _mm256_add_epi32(a, b)
);
