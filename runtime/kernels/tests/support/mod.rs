//! Random numbers, pools and the number of cases for the tests.
#![allow(dead_code)]

use edge_lmm_kernels::format::FormatKind;
use edge_lmm_kernels::{Format, Isa, ThreadPool};
use proptest::test_runner::Config;
use std::num::NonZeroUsize;

/// SplitMix64 generator (Steele et al. 2014): a seed reproduces a case.
pub struct Random(pub u64);

impl Random {
    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box & Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()) as f32
    }

    /// `len` standard normals.
    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// The instruction sets to test: all of this machine.
pub fn isas() -> Vec<Isa> {
    Isa::available()
}

/// A number of threads.
pub fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// A pool of two threads.
pub fn pool(isa: Isa) -> ThreadPool {
    ThreadPool::with_isa(threads(2), isa)
}

/// Largest quantized activation for weights of `format`; infinite for float weights, whose activations are not
/// quantized.
pub fn max_quant(pool: &ThreadPool, format: Format) -> f32 {
    match format.kind() {
        FormatKind::Float(_) => f32::INFINITY,
        FormatKind::Quant(format) => pool.kernels().activation_scheme(format).max_quant,
    }
}

/// A test configuration with `cases` cases, or the number in `PROPTEST_CASES`, for slow emulated machines.
pub fn cases(cases: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(cases);
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}
