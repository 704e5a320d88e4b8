//! Kernels for x86-64: AVX2, AVX-VNNI and AVX-512 with VNNI.
//!
//! The products with quantized weights keep a block of a panel, unpacked, in 8 registers (input `4 i + j` of row `r` in
//! byte `4 r + j` of register `i`), and go over the tokens of the tile: 4 activations are broadcast, multiplied with 8
//! rows, and summed without leaving the integers until the block is done.
//! - AVX2, q4: weights as 0..=15, `vpmaddubsw` into 16 bits, where 8 additions fit: 2 instructions per 32 products. The
//!   offset `-4 * sum` in each of a row's two 16-bit sums makes `-8 * sum`; with it, the final sums are at most
//!   `11 * 127 * 16 + 4 * 127 * 16 = 30480`, and what happens in between wraps harmlessly.
//! - AVX2, q8: `vpmaddubsw` saturates at 32767, and weights take all 8 bits, so that activations are given 7:
//!   `(x + 64) * w`, at most `2 * 127 * 127 = 32258`. The offset `-64 * sum(w)` is computed once per block. (Activations
//!   of 8 bits would need `vpsignb` for each product, a third more instructions.)
//! - VNNI: `vpdpbusd` with the weights as unsigned bytes (q8: `w + 128`), the offset as the initial sum.
#![allow(unsafe_code)]
// Arrays of registers are indexed side by side; the operands of a tile are passed one by one to stay in registers.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

use crate::activation::Activation;
use crate::cpu::{ActivationCode, Isa, Kernels, Panels, Strided, Tile};
use crate::format::{BLOCK, Format, PANEL};
use crate::generic::row_kernels;
use crate::tile::{Operands, check_matmul, row_tiles};
use std::arch::x86_64::*;
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

/// 8 half-precision scales.
///
/// # Safety
/// 16 bytes at `scales` must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_scales(scales: *const u8) -> __m256 {
    // SAFETY: as promised by the caller.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.cast()) })
}

/// Asks for the cache lines of `BYTES` bytes.
#[inline(always)]
fn prefetch<const BYTES: usize>(address: *const u8) {
    for line in (0..BYTES).step_by(64) {
        // SAFETY: a prefetch of any address is harmless, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line).cast()) };
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

/// Defines a module with the products of one format in 256-bit registers, from
/// - `unpack`: the 8 vectors of a block,
/// - `constant(w)`: what depends on the weights alone,
/// - `start(constant, offset)`: the initial sums of a token,
/// - `step(sums, w, x)`: adds the products of a vector and 4 activations,
/// - `finish(a, b)`: the sums of the 8 rows, from two chains of steps (one alone would take too long for the dot product
///   instructions, which wait for each other).
macro_rules! products {
    ($name:ident, $features:literal, $bytes:literal, $unpack:ident, $constant:expr, $start:expr, $step:expr, $finish:expr) => {
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
                            one_token::<2>(operands.panel(panel));
                            panel += 2;
                        }
                        if panel < count {
                            one_token::<1>(operands.panel(panel));
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
                // SAFETY: as promised by the caller.
                unsafe {
                    while operands.blocks > 0 {
                        prefetch::<$bytes>(operands.ahead());
                        let w = $unpack(operands.quants);
                        let w_scale = load_scales(operands.scales);
                        let constant = $constant(w);
                        for t in 0..operands.tokens {
                            let x = operands.x.add(BLOCK * t);
                            let offset = *operands.x_offset.add(t);
                            let mut sums = [$start(constant, offset), _mm256_setzero_si256()];
                            for (i, w) in w.into_iter().enumerate() {
                                sums[i % 2] = $step(sums[i % 2], w, broadcast4(x.add(4 * i)));
                            }
                            let acc = operands.acc.add(t * operands.stride);
                            let x_scale = *operands.x_scale.add(t);
                            let sum = scaled(
                                $finish(sums[0], sums[1]),
                                w_scale,
                                x_scale,
                                _mm256_loadu_ps(acc),
                            );
                            _mm256_storeu_ps(acc, sum);
                        }
                        operands.advance();
                    }
                }
            }

            /// `N` panels with one token: the sums stay in registers.
            ///
            /// # Safety
            /// The operands must be as [`Operands::new`] gives them, with `N - 1` panels after this one.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn one_token<const N: usize>(mut operands: Operands) {
                // SAFETY: as promised by the caller.
                unsafe {
                    let mut acc = [_mm256_setzero_ps(); N];
                    for p in 0..N {
                        acc[p] = _mm256_loadu_ps(operands.acc.add(p * PANEL));
                    }
                    while operands.blocks > 0 {
                        let mut sums = [[_mm256_setzero_si256(); 2]; N];
                        let mut w = [[_mm256_setzero_si256(); 8]; N];
                        for p in 0..N {
                            let panel = operands.panel(p);
                            prefetch::<$bytes>(panel.ahead());
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
                            let w_scale = load_scales(operands.panel(p).scales);
                            let sums = $finish(sums[p][0], sums[p][1]);
                            acc[p] = scaled(sums, w_scale, *operands.x_scale, acc[p]);
                        }
                        operands.advance();
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
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)),
    |a, b| _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1))
);
products!(
    q8_avx2,
    "avx2,fma,f16c",
    256,
    load_q8,
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
    |a, b| _mm256_add_epi32(a, b)
);
products!(
    q4_avxvnni,
    "avx2,fma,f16c,avxvnni",
    128,
    unpack_q4,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_avx_epi32(sums, w, x),
    |a, b| _mm256_add_epi32(a, b)
);
products!(
    q8_avxvnni,
    "avx2,fma,f16c,avxvnni",
    256,
    load_q8_unsigned,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_avx_epi32(sums, w, x),
    |a, b| _mm256_add_epi32(a, b)
);
products!(
    q4_avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    128,
    unpack_q4,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b| _mm256_add_epi32(a, b)
);
products!(
    q8_avx512,
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni",
    256,
    load_q8_unsigned,
    |_| (),
    |_, offset| _mm256_set1_epi32(offset),
    |sums, w, x| _mm256_dpbusd_epi32(sums, w, x),
    |a, b| _mm256_add_epi32(a, b)
);

/// Two registers of 256 bits as one.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// The 8 vectors of a block of two panels, 16 rows, as unsigned bytes.
///
/// # Safety
/// A block's bytes at `quants` of both panels must be readable.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
unsafe fn unpack_pair<const Q4: bool>(first: *const u8, second: *const u8) -> [__m512i; 8] {
    let mut w = [_mm512_setzero_si512(); 8];
    for v in 0..if Q4 { 4 } else { 8 } {
        // SAFETY: 4 or 8 vectors of 32 bytes, as promised by the caller.
        let both = unsafe {
            join(
                _mm256_loadu_si256(first.add(32 * v).cast()),
                _mm256_loadu_si256(second.add(32 * v).cast()),
            )
        };
        if Q4 {
            let low = _mm512_set1_epi8(15);
            w[2 * v] = _mm512_and_si512(both, low);
            w[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
        } else {
            w[v] = _mm512_xor_si512(both, _mm512_set1_epi8(-128));
        }
    }
    w
}

/// The scales of a block of two panels.
///
/// # Safety
/// 16 bytes at both addresses must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512dq")]
unsafe fn load_scales_pair(first: *const u8, second: *const u8) -> __m512 {
    // SAFETY: as promised by the caller.
    unsafe {
        _mm512_insertf32x8::<1>(
            _mm512_castps256_ps512(load_scales(first)),
            load_scales(second),
        )
    }
}

/// A block of `N` pairs of panels: weights and scales.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with `2 N - 1` more panels after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn load_pairs<const Q4: bool, const N: usize>(
    operands: &Operands,
) -> ([[__m512i; 8]; N], [__m512; N]) {
    let mut w = [[_mm512_setzero_si512(); 8]; N];
    let mut w_scale = [_mm512_setzero_ps(); N];
    for pair in 0..N {
        let (first, second) = (operands.panel(2 * pair), operands.panel(2 * pair + 1));
        if Q4 {
            prefetch::<128>(first.ahead());
            prefetch::<128>(second.ahead());
        } else {
            prefetch::<256>(first.ahead());
            prefetch::<256>(second.ahead());
        }
        // SAFETY: as promised by the caller.
        unsafe {
            w[pair] = unpack_pair::<Q4>(first.quants, second.quants);
            w_scale[pair] = load_scales_pair(first.scales, second.scales);
        }
    }
    (w, w_scale)
}

/// Adds the products of a block of `N` pairs of panels with one token.
///
/// # Safety
/// The activations of token `t` must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_token<const N: usize>(
    operands: &Operands,
    t: usize,
    w: &[[__m512i; 8]; N],
    w_scale: &[__m512; N],
    acc: &mut [__m512; N],
) {
    // SAFETY: as promised by the caller; the reads are unaligned.
    unsafe {
        let x = operands.x.add(BLOCK * t).cast::<i32>();
        let offset = _mm512_set1_epi32(*operands.x_offset.add(t));
        // Two chains, as in 256 bits.
        let mut sums = [[offset, _mm512_setzero_si512()]; N];
        for i in 0..8 {
            let x = _mm512_set1_epi32(x.add(i).read_unaligned());
            for pair in 0..N {
                sums[pair][i % 2] = _mm512_dpbusd_epi32(sums[pair][i % 2], w[pair][i], x);
            }
        }
        let x_scale = _mm512_set1_ps(*operands.x_scale.add(t));
        for pair in 0..N {
            let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[pair][0], sums[pair][1]));
            acc[pair] = _mm512_fmadd_ps(sums, _mm512_mul_ps(w_scale[pair], x_scale), acc[pair]);
        }
    }
}

/// # Safety
/// `acc` must be readable for `16 N` floats.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_sums<const N: usize>(acc: *const f32) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    for (pair, sums) in sums.iter_mut().enumerate() {
        // SAFETY: as promised by the caller.
        *sums = unsafe { _mm512_loadu_ps(acc.add(2 * PANEL * pair)) };
    }
    sums
}

/// # Safety
/// `acc` must be writable for `16 N` floats.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_sums<const N: usize>(acc: *mut f32, sums: [__m512; N]) {
    for (pair, sums) in sums.into_iter().enumerate() {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_storeu_ps(acc.add(2 * PANEL * pair), sums) };
    }
}

/// `N` pairs of panels.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, with `2 N - 1` more panels after this one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pairs_avx512<const Q4: bool, const N: usize>(mut operands: Operands) {
    // SAFETY: as promised by the caller.
    unsafe {
        if operands.tokens == 1 {
            let mut acc = load_sums::<N>(operands.acc);
            while operands.blocks > 0 {
                let (w, w_scale) = load_pairs::<Q4, N>(&operands);
                add_token(&operands, 0, &w, &w_scale, &mut acc);
                operands.advance();
            }
            return store_sums(operands.acc, acc);
        }
        while operands.blocks > 0 {
            let (w, w_scale) = load_pairs::<Q4, N>(&operands);
            for t in 0..operands.tokens {
                let at = operands.acc.add(t * operands.stride);
                let mut acc = load_sums::<N>(at);
                add_token(&operands, t, &w, &w_scale, &mut acc);
                store_sums(at, acc);
            }
            operands.advance();
        }
    }
}

/// All panels, four by four.
///
/// # Safety
/// The operands must be as [`Operands::new`] gives them, for `count` panels.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn panels_avx512<const Q4: bool>(operands: Operands, count: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut panel = 0;
        while panel + 4 <= count {
            pairs_avx512::<Q4, 2>(operands.panel(panel));
            panel += 4;
        }
        if panel + 2 <= count {
            pairs_avx512::<Q4, 1>(operands.panel(panel));
            panel += 2;
        }
        if panel < count && Q4 {
            q4_avx512::panels(operands.panel(panel), 1);
        } else if panel < count {
            q8_avx512::panels(operands.panel(panel), 1);
        }
    }
}

/// `R` rows and `V` vectors of 8 columns of a product, in registers.
///
/// # Safety
/// `a` must be readable for `R` rows of `k`, `b` for `k` rows and `c` writable for `R` rows of `8 V` columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const R: usize, const V: usize>(
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
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
                *row = _mm256_loadu_ps(b.add(p * b_stride + 8 * v));
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
unsafe fn tile_avx512<const R: usize, const V: usize>(
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
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
                *row = _mm512_loadu_ps(b.add(p * b_stride + 16 * v));
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

#[target_feature(enable = "avx2,fma")]
fn matmul_avx2(
    size: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_>,
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
            row_tiles!(tile_avx2, 2, [1 2 3 4 5 6], 6, m, k, a, b, add, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, add, c, j);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn matmul_avx512(
    size: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_>,
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
            row_tiles!(tile_avx512, 2, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, add, c, j);
            j += 32;
        }
        while j + 16 <= n {
            row_tiles!(tile_avx512, 1, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, add, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, add, c, j);
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
            load_scales(w)
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
                load_scales(halves.as_ptr().add(2 * i)),
            )
        };
    }
    crate::generic::widen(&halves[2 * whole..], &mut out[whole..]);
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

    avx2_kernels!();
    row_kernels!(true, "avx2,fma");
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

    avx2_kernels!();
    row_kernels!(true, "avx2,fma");
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

    avx2_kernels!();
    row_kernels!(true, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma");
}
