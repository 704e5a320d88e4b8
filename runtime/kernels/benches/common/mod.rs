//! What the benchmarks have in common.

use edge_lmm_kernels::ThreadPool;
use std::num::NonZeroUsize;

/// A pool of as many threads as the environment variable `THREADS` says, or all.
pub fn pool() -> ThreadPool {
    let threads = std::env::var("THREADS").ok().and_then(|n| n.parse().ok());
    let all = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    ThreadPool::new(threads.unwrap_or(all))
}

/// Numbers that look random, from -1 to 1.
pub fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
