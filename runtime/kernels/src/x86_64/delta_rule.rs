//! The gated delta rule.

/// The gated delta rule with AVX2 and FMA.
pub(super) mod avx2 {
    use crate::cpu::DeltaSteps;
    use crate::delta_rule::COLUMNS;
    use crate::generic::delta_rule::{Added, Next, Row, passes};
    use crate::simd::delta_rule;
    use std::arch::x86_64::*;

    delta_rule! {
        features: "avx2,fma",
        vector: __m256,
        lanes: 8,
        zero: _mm256_setzero_ps(),
        load: _mm256_loadu_ps,
        store: _mm256_storeu_ps,
        splat: _mm256_set1_ps,
        fma: _mm256_fmadd_ps,
        mul: _mm256_mul_ps,
    }
}

/// The gated delta rule with AVX-512.
pub(super) mod avx512 {
    use crate::cpu::DeltaSteps;
    use crate::delta_rule::COLUMNS;
    use crate::generic::delta_rule::{Added, Next, Row, passes};
    use crate::simd::delta_rule;
    use std::arch::x86_64::*;

    delta_rule! {
        features: "avx512f",
        vector: __m512,
        lanes: 16,
        zero: _mm512_setzero_ps(),
        load: _mm512_loadu_ps,
        store: _mm512_storeu_ps,
        splat: _mm512_set1_ps,
        fma: _mm512_fmadd_ps,
        mul: _mm512_mul_ps,
    }
}
