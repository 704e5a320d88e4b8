//! What this machine could reach at most: operations on registers, and reading from memory.
//!
//! A kernel's speed says little by itself; as a share of these it says how much is left to gain.

use crate::format::Format;
use crate::pool::ThreadPool;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long one attempt takes.
const ATTEMPT: Duration = Duration::from_millis(30);
/// Attempts; the best counts, since whatever else the machine does can only slow one down.
const ATTEMPTS: usize = 12;
/// Bytes read to measure the memory: more than any cache holds.
const MEMORY_BYTES: usize = 256 << 20;

/// Operations per second (two for a product and its addition) that all threads of the pool together can do on registers
/// with weights of `format`; `None` where the instruction set has no measure of it.
pub fn operations_per_second(pool: &ThreadPool, format: Format) -> Option<f64> {
    let kernels = pool.kernels();
    let start = Instant::now();
    let mut rounds = 1000u32;
    let mut operations = kernels.spin(format, rounds)?;
    while start.elapsed() < ATTEMPT {
        rounds = rounds.saturating_mul(2);
        operations = kernels.spin(format, rounds)?;
    }
    let attempt = || {
        let start = Instant::now();
        pool.run(pool.threads(), |_| {
            black_box(kernels.spin(format, rounds));
        });
        (operations * pool.threads() as u64) as f64 / start.elapsed().as_secs_f64()
    };
    Some((0..ATTEMPTS).map(|_| attempt()).fold(0.0, f64::max))
}

/// Bytes per second that all threads of the pool together can read from memory, one after the other.
pub fn read_bandwidth(pool: &ThreadPool) -> f64 {
    // Not zeros, which the system might give without any memory behind them.
    let data = vec![1u64; MEMORY_BYTES / 8];
    let pieces: Vec<&[u64]> = data.chunks(1 << 16).collect();
    let attempt = || {
        let start = Instant::now();
        pool.run(pieces.len(), |index| {
            black_box(pieces[index].iter().copied().fold(0, u64::wrapping_add));
        });
        MEMORY_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    (0..ATTEMPTS).map(|_| attempt()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use std::num::NonZeroUsize;

    #[test]
    fn every_fast_instruction_set_has_a_ceiling() {
        for isa in Isa::available() {
            for format in Format::ALL {
                let one = isa.kernels().spin(format, 1);
                assert_eq!(one.is_none(), isa == Isa::Generic, "{isa} {format}");
                assert_eq!(
                    isa.kernels().spin(format, 100),
                    one.map(|operations| 100 * operations),
                    "{isa} {format}"
                );
            }
        }
    }

    #[test]
    fn something_is_measured() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        assert!(read_bandwidth(&pool) > 0.0);
        let measured = operations_per_second(&pool, Format::Q8);
        assert_eq!(measured.is_none(), pool.kernels().isa() == Isa::Generic);
        assert!(measured.is_none_or(|speed| speed > 0.0));
    }
}
