//! What happens when a device has no more memory.
//!
//! CubeCL takes memory on a thread of its own, and panics there if there is none; all that is told
//! later is that a buffer is missing, and not even that on every device. So the panic itself is
//! caught: it says how much was asked for.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl::stream_id::StreamId;

use crate::backend::MemoryFailure;

/// An allocation that failed: the stream that asked, and the bytes where they are known. Every
/// thread has a stream of its own, and CubeCL's thread works in the name of the one that asks.
type Failed = (StreamId, Option<u64>);

/// What has not been told yet, at most one of each stream.
static FAILED: Mutex<Vec<Failed>> = Mutex::new(Vec::new());

fn failed() -> MutexGuard<'static, Vec<Failed>> {
    // A vector is whole whenever a thread that holds it may panic.
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes allocations that fail, from now on, instead of printing a panic for each; all other
/// panics are printed as before. Once for the whole program, further calls do nothing.
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

/// The bytes that were asked for, if that is what the panic is about.
fn failed_allocation(panic: &PanicHookInfo<'_>) -> Option<Option<u64>> {
    let of_runtime = panic.location().is_some_and(|location| {
        ["cubecl", "wgpu"]
            .iter()
            .any(|name| location.file().contains(name))
    });
    let text = panic.payload_as_str().filter(|_| of_runtime)?;
    // What CubeCL says, and wgpu.
    let memory = ["can't allocate buffer", "Out of Memory"];
    memory
        .iter()
        .any(|name| text.contains(name))
        .then(|| size(text))
}

/// The number behind `size: `.
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
