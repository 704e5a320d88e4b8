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
// Arrays of registers are indexed side by side.
#![allow(clippy::needless_range_loop)]

use crate::activation::Activation;
use crate::cpu::{ActivationCode, Isa, Kernels, Panels, Strided, Tile};
use crate::format::{BLOCK, Format, PANEL};
use crate::generic::row_kernels;
use crate::tile::{Block, check_matmul, each_block, row_tiles};
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

/// Adds `sums * (w_scale * x_scale)` to token `t`'s sums.
///
/// # Safety
/// `block` must describe readable and writable memory for token `t`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate(block: &Block, t: usize, sums: __m256i, w_scale: __m256) {
    // SAFETY: as promised by the caller.
    unsafe {
        let scale = _mm256_mul_ps(w_scale, _mm256_set1_ps(*block.x_scale.add(t)));
        let acc = block.acc.add(t * block.stride);
        _mm256_storeu_ps(
            acc,
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, _mm256_loadu_ps(acc)),
        );
    }
}

/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_avx2(block: Block) {
    // SAFETY: as promised by the caller.
    unsafe {
        let w = unpack_q4(block.quants);
        let w_scale = load_scales(block.scales);
        let ones = _mm256_set1_epi16(1);
        for t in 0..block.tokens {
            let x = block.x.add(BLOCK * t);
            let mut sums = _mm256_set1_epi32(*block.x_offset.add(t));
            for (i, w) in w.iter().enumerate() {
                sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(*w, broadcast4(x.add(4 * i))));
            }
            accumulate(&block, t, _mm256_madd_epi16(sums, ones), w_scale);
        }
    }
}

/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_avx2(block: Block) {
    // SAFETY: as promised by the caller.
    unsafe {
        let w = load_q8(block.quants);
        let w_scale = load_scales(block.scales);
        let ones = _mm256_set1_epi16(1);
        let mut w_sums = _mm256_setzero_si256();
        for w in w {
            w_sums = _mm256_add_epi16(w_sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), w));
        }
        let offset = _mm256_madd_epi16(w_sums, _mm256_set1_epi16(-64));
        for t in 0..block.tokens {
            let x = block.x.add(BLOCK * t);
            let mut sums = offset;
            for (i, w) in w.iter().enumerate() {
                let pairs = _mm256_maddubs_epi16(broadcast4(x.add(4 * i)), *w);
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
            }
            accumulate(&block, t, sums, w_scale);
        }
    }
}

/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn q4_avxvnni(block: Block) {
    // SAFETY: as promised by the caller.
    unsafe { dot_avxvnni(&block, unpack_q4(block.quants)) }
}

/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn q8_avxvnni(block: Block) {
    // SAFETY: as promised by the caller.
    let w = unsafe { load_q8(block.quants) }.map(|w| _mm256_xor_si256(w, _mm256_set1_epi8(-128)));
    // SAFETY: as promised by the caller.
    unsafe { dot_avxvnni(&block, w) }
}

/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn dot_avxvnni(block: &Block, w: [__m256i; 8]) {
    // SAFETY: as promised by the caller.
    unsafe {
        let w_scale = load_scales(block.scales);
        for t in 0..block.tokens {
            let x = block.x.add(BLOCK * t);
            let mut sums = _mm256_set1_epi32(*block.x_offset.add(t));
            for (i, w) in w.iter().enumerate() {
                sums = _mm256_dpbusd_avx_epi32(sums, *w, broadcast4(x.add(4 * i)));
            }
            accumulate(block, t, sums, w_scale);
        }
    }
}

/// Two panels' blocks at once, 16 rows; `next` is the second one.
///
/// # Safety
/// `block` and `next` must describe readable memory, `block.acc` writable memory of 16 floats per token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dot_avx512(block: &Block, next: &Block, format: Format) {
    // SAFETY: as promised by the caller.
    unsafe {
        let (low, high) = if format == Format::Q4 {
            (unpack_q4(block.quants), unpack_q4(next.quants))
        } else {
            (load_q8(block.quants), load_q8(next.quants))
        };
        let mut w = [_mm512_setzero_si512(); 8];
        for i in 0..8 {
            w[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low[i]), high[i], 1);
            if format == Format::Q8 {
                w[i] = _mm512_xor_si512(w[i], _mm512_set1_epi8(-128));
            }
        }
        let (low, high) = (load_scales(block.scales), load_scales(next.scales));
        let w_scale = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
        for t in 0..block.tokens {
            let x = block.x.add(BLOCK * t).cast::<i32>();
            let mut sums = _mm512_set1_epi32(*block.x_offset.add(t));
            for (i, w) in w.iter().enumerate() {
                sums = _mm512_dpbusd_epi32(sums, *w, _mm512_set1_epi32(x.add(i).read_unaligned()));
            }
            let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*block.x_scale.add(t)));
            let acc = block.acc.add(t * block.stride);
            _mm512_storeu_ps(
                acc,
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, _mm512_loadu_ps(acc)),
            );
        }
    }
}

/// One panel's block with AVX-512's 256-bit dot product.
///
/// # Safety
/// `block` must describe readable (`acc`: writable) memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dot_avx512_half(block: Block, format: Format) {
    // SAFETY: as promised by the caller.
    unsafe {
        let w = if format == Format::Q4 {
            unpack_q4(block.quants)
        } else {
            load_q8(block.quants).map(|w| _mm256_xor_si256(w, _mm256_set1_epi8(-128)))
        };
        let w_scale = load_scales(block.scales);
        for t in 0..block.tokens {
            let x = block.x.add(BLOCK * t);
            let mut sums = _mm256_set1_epi32(*block.x_offset.add(t));
            for (i, w) in w.iter().enumerate() {
                sums = _mm256_dpbusd_epi32(sums, *w, broadcast4(x.add(4 * i)));
            }
            accumulate(&block, t, sums, w_scale);
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
    c: *mut f32,
    c_stride: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); V]; R];
        for r in 0..R {
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
    c: *mut f32,
    c_stride: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        for r in 0..R {
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
fn matmul_avx2(size: [usize; 3], a: Strided<'_>, b: Strided<'_>, c: &mut [f32], c_stride: usize) {
    check_matmul(size, a, b, c, c_stride);
    let [m, n, k] = size;
    if k == 0 {
        return;
    }
    let c = (c.as_mut_ptr(), c_stride);
    let mut j = 0;
    // SAFETY: checked above.
    unsafe {
        while j + 16 <= n {
            row_tiles!(tile_avx2, 2, [1 2 3 4 5 6], 6, m, k, a, b, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, c, j);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn matmul_avx512(size: [usize; 3], a: Strided<'_>, b: Strided<'_>, c: &mut [f32], c_stride: usize) {
    check_matmul(size, a, b, c, c_stride);
    let [m, n, k] = size;
    if k == 0 {
        return;
    }
    let c = (c.as_mut_ptr(), c_stride);
    let mut j = 0;
    // SAFETY: checked above.
    unsafe {
        while j + 32 <= n {
            row_tiles!(tile_avx512, 2, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, c, j);
            j += 32;
        }
        while j + 16 <= n {
            row_tiles!(tile_avx512, 1, [1 2 3 4 5 6 7 8 9 10 11 12], 12, m, k, a, b, c, j);
            j += 16;
        }
        if j < n {
            row_tiles!(tile_avx2, 1, [1 2 3 4 5 6 7 8], 8, m, k, a, b, c, j);
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

/// Calls a block function for all panels.
macro_rules! every_panel {
    ($panels:expr, $range:expr, $tile:expr, $acc:expr, $step:expr) => {
        for panel in 0..$panels.count() {
            each_block($panels, $range.clone(), $tile, $acc, panel, $step);
        }
    };
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantized_avx2(panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
    // SAFETY: `each_block` gives operands that it has checked.
    if panels.format == Format::Q4 {
        every_panel!(panels, range, tile, acc, |block| unsafe { q4_avx2(block) });
    } else {
        every_panel!(panels, range, tile, acc, |block| unsafe { q8_avx2(block) });
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn quantized_avxvnni(panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
    // SAFETY: `each_block` gives operands that it has checked.
    if panels.format == Format::Q4 {
        every_panel!(panels, range, tile, acc, |block| unsafe {
            q4_avxvnni(block)
        });
    } else {
        every_panel!(panels, range, tile, acc, |block| unsafe {
            q8_avxvnni(block)
        });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantized_avx512(panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
    if panels.format == Format::Q4 {
        pairs_avx512::<true>(panels, range, tile, acc);
    } else {
        pairs_avx512::<false>(panels, range, tile, acc);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn pairs_avx512<const Q4: bool>(
    panels: Panels<'_>,
    range: Range<usize>,
    tile: Tile<'_>,
    acc: &mut [f32],
) {
    let format = if Q4 { Format::Q4 } else { Format::Q8 };
    let mut panel = 0;
    while panel + 1 < panels.count() {
        each_block(panels, range.clone(), tile, acc, panel, |block| {
            let next = Block {
                quants: block.quants.wrapping_add(panels.panel_bytes),
                scales: block.scales.wrapping_add(panels.panel_bytes),
                ..block
            };
            // SAFETY: `each_block` gives operands that it has checked, and the next panel is there too.
            unsafe { dot_avx512(&block, &next, format) }
        });
        panel += 2;
    }
    if panel < panels.count() {
        // SAFETY: `each_block` gives operands that it has checked.
        each_block(panels, range, tile, acc, panel, |block| unsafe {
            dot_avx512_half(block, format)
        });
    }
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { quantized_avx2(panels, range, tile, acc) }
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, c, c_stride) }
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { quantized_avxvnni(panels, range, tile, acc) }
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx2(size, a, b, c, c_stride) }
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
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { quantized_avx512(panels, range, tile, acc) }
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        // SAFETY: `find` hands these kernels out only on machines with these features.
        unsafe { matmul_avx512(size, a, b, c, c_stride) }
    }

    avx2_kernels!();
    row_kernels!(true, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma");
}
