//! Peak arithmetic throughput and peak memory bandwidth: the two roofs of a roofline model.
//!
//! The throughput of a kernel relative to the roof that bounds it shows how much there is to gain.

use crate::format::Format;
use crate::pool::ThreadPool;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Duration of one run.
const RUN: Duration = Duration::from_millis(30);
/// Bytes read to measure the memory bandwidth: more than any cache holds.
const MEMORY_BYTES: usize = 256 << 20;

/// Number of runs of a measurement. The fastest counts, because other load can only slow a run down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// About half a second for each peak.
    Full,
    /// About a tenth of a second for each peak.
    Quick,
}

impl Effort {
    fn runs(self) -> usize {
        match self {
            Self::Full => 12,
            Self::Quick => 3,
        }
    }
}

/// Peak throughput of all threads of the pool with weights of `format`, in operations per second (two per
/// multiply-add). `None` for instruction sets without a peak loop.
pub fn operations_per_second(pool: &ThreadPool, format: Format) -> Option<f64> {
    operations_per_second_with(pool, format, Effort::Full)
}

/// As [`operations_per_second`], with the given effort.
pub fn operations_per_second_with(
    pool: &ThreadPool,
    format: Format,
    effort: Effort,
) -> Option<f64> {
    let kernels = pool.kernels();
    let start = Instant::now();
    let mut rounds = 1000u32;
    let mut operations = kernels.peak_loop(format, rounds)?;
    while start.elapsed() < RUN {
        rounds = rounds.saturating_mul(2);
        operations = kernels.peak_loop(format, rounds)?;
    }
    let run = || {
        let start = Instant::now();
        pool.run(pool.threads(), |_| {
            black_box(kernels.peak_loop(format, rounds));
        });
        (operations * pool.threads() as u64) as f64 / start.elapsed().as_secs_f64()
    };
    Some((0..effort.runs()).map(|_| run()).fold(0.0, f64::max))
}

/// Peak bandwidth at which all threads of the pool together read memory sequentially, in bytes per
/// second.
pub fn read_bandwidth(pool: &ThreadPool) -> f64 {
    read_bandwidth_with(pool, Effort::Full)
}

/// As [`read_bandwidth`], with the given effort.
pub fn read_bandwidth_with(pool: &ThreadPool, effort: Effort) -> f64 {
    // Zeros could be pages that the system has not allocated.
    let data = vec![1u64; MEMORY_BYTES / 8];
    let pieces: Vec<&[u64]> = data.chunks(1 << 16).collect();
    let run = || {
        let start = Instant::now();
        pool.run(pieces.len(), |index| {
            black_box(pieces[index].iter().copied().fold(0, u64::wrapping_add));
        });
        MEMORY_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    (0..effort.runs()).map(|_| run()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use std::num::NonZeroUsize;

    #[test]
    fn every_simd_instruction_set_has_a_peak_loop() {
        for isa in Isa::available() {
            for format in Format::ALL {
                let one = isa.kernels().peak_loop(format, 1);
                assert_eq!(one.is_none(), isa == Isa::Generic, "{isa} {format}");
                assert_eq!(
                    isa.kernels().peak_loop(format, 100),
                    one.map(|operations| 100 * operations),
                    "{isa} {format}"
                );
            }
        }
    }

    #[test]
    fn both_roofs_are_measured() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        assert!(read_bandwidth(&pool) > 0.0);
        let measured = operations_per_second(&pool, Format::Q8);
        assert_eq!(measured.is_none(), pool.kernels().isa() == Isa::Generic);
        assert!(measured.is_none_or(|speed| speed > 0.0));
    }
}
