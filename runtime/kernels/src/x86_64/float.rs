//! Products with float weights.

// Arrays of registers are indexed in parallel.
#![allow(clippy::needless_range_loop)]

/// Products with AVX2, FMA and F16C.
pub(super) mod avx2 {
    use super::super::load::load_halves;
    use crate::cpu::Strided;
    use crate::element::Element;
    use crate::format::{FloatFormat, PANEL};
    use crate::simd::{float_rows, float_tile, matmul};
    use half::f16;
    use std::arch::x86_64::*;

    /// Loads 8 numbers as single precision.
    ///
    /// # Safety
    /// 8 numbers must be readable at `numbers`, which need not be aligned.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load<T: Element>(numbers: *const T) -> __m256 {
        // SAFETY: as promised by the caller.
        unsafe {
            if T::HALF {
                load_halves(numbers.cast())
            } else {
                _mm256_loadu_ps(numbers.cast())
            }
        }
    }

    /// As [`load`]: the weights of a panel's rows for one input are one vector.
    ///
    /// # Safety
    /// As [`load`].
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load_row<T: Element>(numbers: *const T) -> [__m256; 1] {
        // SAFETY: as promised by the caller.
        [unsafe { load(numbers) }]
    }

    float_tile! {
        features: "avx2,fma,f16c",
        vector: __m256,
        lanes: 8,
        zero: _mm256_setzero_ps(),
        load: load,
        load_floats: _mm256_loadu_ps,
        store: _mm256_storeu_ps,
        splat: _mm256_set1_ps,
        fma: _mm256_fmadd_ps,
    }
    matmul! {
        "avx2,fma,f16c";
        tile, 2, 16, [1 2 3 4 5 6];
        tile, 1, 8, [1 2 3 4 5 6 7 8];
    }
    float_rows! {
        features: "avx2,fma,f16c",
        vector: __m256,
        lanes: 8,
        zero: _mm256_setzero_ps(),
        load_row: load_row,
        store: _mm256_storeu_ps,
        splat: _mm256_set1_ps,
        fma: _mm256_fmadd_ps,
    }
}

/// Matrix products with AVX-512.
pub(super) mod avx512 {
    use super::avx2::tile as tile_avx2;
    use crate::cpu::Strided;
    use crate::element::Element;
    use crate::simd::{float_tile, matmul};
    use std::arch::x86_64::*;

    /// Loads 16 numbers as single precision.
    ///
    /// # Safety
    /// 16 numbers must be readable at `numbers`, which need not be aligned.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<T: Element>(numbers: *const T) -> __m512 {
        // SAFETY: as promised by the caller.
        unsafe {
            if T::HALF {
                _mm512_cvtph_ps(_mm256_loadu_si256(numbers.cast()))
            } else {
                _mm512_loadu_ps(numbers.cast())
            }
        }
    }

    float_tile! {
        features: "avx512f",
        vector: __m512,
        lanes: 16,
        zero: _mm512_setzero_ps(),
        load: load,
        load_floats: _mm512_loadu_ps,
        store: _mm512_storeu_ps,
        splat: _mm512_set1_ps,
        fma: _mm512_fmadd_ps,
    }
    matmul! {
        "avx512f,avx2,fma,f16c";
        tile, 2, 32, [1 2 3 4 5 6 7 8 9 10 11 12];
        tile, 1, 16, [1 2 3 4 5 6 7 8 9 10 11 12];
        tile_avx2, 1, 8, [1 2 3 4 5 6 7 8];
    }
}
