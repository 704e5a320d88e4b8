//! Thread pool of the benchmarks.

use edge_lmm_kernels::ThreadPool;
use std::num::NonZeroUsize;

/// A pool with the number of threads in the environment variable `THREADS`, by default one per core.
pub fn pool() -> ThreadPool {
    let threads = std::env::var("THREADS").ok().and_then(|n| n.parse().ok());
    let all = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    ThreadPool::new(threads.unwrap_or(all))
}
