//! Failed allocations of device memory.
//! CubeCL allocates on a separate thread and panics there if an allocation fails. Later operations
//! report at most that a buffer is missing. A panic hook therefore records the failure, including
//! the requested size.
//! size.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl::stream_id::StreamId;

use crate::backend::MemoryFailure;

/// A failed allocation: the requesting stream, and the bytes if known. Each thread has its own stream, and
/// CubeCL's thread acts for the stream of the requesting one.
type Failed = (StreamId, Option<u64>);

/// Failures that have not been reported, at most one per stream.
static FAILED: Mutex<Vec<Failed>> = Mutex::new(Vec::new());

fn failed() -> MutexGuard<'static, Vec<Failed>> {
    // The vector is consistent whenever a thread that holds the lock can panic.
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs a panic hook that records failed allocations without printing them and passes all other panics
/// to the previous hook. Only the first call has an effect.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match failed_allocation(panic) {
            Some(asked) => note(asked),
            None => before(panic),
        }));
    });
}

fn note(asked: Option<u64>) {
    let (stream, mut failed) = (StreamId::current(), failed());
    if failed.iter().all(|(other, _)| *other != stream) {
        failed.push((stream, asked));
    }
}

/// Returns `Some` with the requested bytes, if known, if the panic is a failed allocation.
fn failed_allocation(panic: &PanicHookInfo<'_>) -> Option<Option<u64>> {
    let of_runtime = panic.location().is_some_and(|location| {
        ["cubecl", "wgpu"]
            .iter()
            .any(|name| location.file().contains(name))
    });
    let text = panic.payload_as_str().filter(|_| of_runtime)?;
    // Messages of CubeCL and wgpu.
    let memory = ["can't allocate buffer", "Out of Memory"];
    memory
        .iter()
        .any(|name| text.contains(name))
        .then(|| size(text))
}

/// Parses the number after `size: `.
fn size(text: &str) -> Option<u64> {
    let (_, behind) = text.split_once("size: ")?;
    let digits = behind.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// See [`KernelBackend::memory_failure`](crate::KernelBackend::memory_failure).
pub(super) fn failure<R: CubeRuntime>(client: &ComputeClient<R>) -> Option<MemoryFailure> {
    let stream = StreamId::current();
    let asked = {
        let mut failed = failed();
        let own = failed.iter().position(|(other, _)| *other == stream)?;
        failed.swap_remove(own).1
    };
    let usage = client.memory_usage().ok();
    Some(MemoryFailure {
        asked,
        held: usage.map(|usage| usage.bytes_reserved),
        free: None,
    })
}
