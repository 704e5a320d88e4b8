//! Loops that run at the peak throughput of the multiply-add instructions.

use crate::simd::peak_loop;
use std::arch::asm;
use std::arch::x86_64::*;

macro_rules! q4_avx2_chain {
    ($acc:literal) => {
        concat!(
            "vpmaddubsw ymm13, ymm14, ymm15\n",
            "vpaddw ",
            $acc,
            ", ",
            $acc,
            ", ymm13"
        )
    };
}
macro_rules! q8_avx2_chain {
    ($acc:literal) => {
        concat!(
            "vpmaddubsw ymm13, ymm14, ymm15\n",
            "vpmaddwd ymm13, ymm13, ymm14\n",
            "vpaddd ",
            $acc,
            ", ",
            $acc,
            ", ymm13"
        )
    };
}
macro_rules! float_avx2_chain {
    ($acc:literal) => {
        concat!("vfmadd231ps ", $acc, ", ymm14, ymm15")
    };
}
macro_rules! avxvnni_chain {
    ($acc:literal) => {
        concat!("{{vex}} vpdpbusd ", $acc, ", ymm14, ymm15")
    };
}
macro_rules! avx512vnni_chain {
    ($acc:literal) => {
        concat!("vpdpbusd ", $acc, ", zmm14, zmm15")
    };
}
macro_rules! float_avx512_chain {
    ($acc:literal) => {
        concat!("vfmadd231ps ", $acc, ", zmm14, zmm15")
    };
}

peak_loop! {
    /// `vpmaddubsw` and additions in 16 bits.
    q4_avx2,
    features: "avx2",
    chain: q4_avx2_chain,
    chains: ["ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7"],
    inputs: ["ymm14" = _mm256_set1_epi8(3), "ymm15" = _mm256_set1_epi8(5)],
    clobbers: ["ymm13"],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 64,
}
peak_loop! {
    /// `vpmaddubsw`, `vpmaddwd` and additions in 32 bits.
    q8_avx2,
    features: "avx2",
    chain: q8_avx2_chain,
    chains: ["ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7"],
    inputs: ["ymm14" = _mm256_set1_epi8(3), "ymm15" = _mm256_set1_epi8(5)],
    clobbers: ["ymm13"],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 64,
}
peak_loop! {
    /// Fused multiply-adds of 8 floats.
    float_avx2,
    features: "avx2,fma",
    chain: float_avx2_chain,
    chains: ["ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7" "ymm8" "ymm9" "ymm10" "ymm11"],
    inputs: ["ymm14" = _mm256_set1_ps(0.5), "ymm15" = _mm256_set1_ps(0.25)],
    clobbers: [],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 16,
}
peak_loop! {
    /// Dot products of 32 bytes.
    avxvnni,
    features: "avx2,avxvnni",
    chain: avxvnni_chain,
    chains: ["ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7" "ymm8" "ymm9" "ymm10" "ymm11"],
    inputs: ["ymm14" = _mm256_set1_epi8(3), "ymm15" = _mm256_set1_epi8(5)],
    clobbers: [],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 64,
}
peak_loop! {
    /// Dot products of 64 bytes.
    avx512vnni,
    features: "avx512f,avx512vnni",
    chain: avx512vnni_chain,
    chains: ["zmm0" "zmm1" "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11"],
    inputs: ["zmm14" = _mm512_set1_epi8(3), "zmm15" = _mm512_set1_epi8(5)],
    clobbers: [],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 128,
}
peak_loop! {
    /// Fused multiply-adds of 16 floats.
    float_avx512,
    features: "avx512f",
    chain: float_avx512_chain,
    chains: ["zmm0" "zmm1" "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11"],
    inputs: ["zmm14" = _mm512_set1_ps(0.5), "zmm15" = _mm512_set1_ps(0.25)],
    clobbers: [],
    count: ["dec {rounds:e}" "jnz 2b"],
    operations: 32,
}
