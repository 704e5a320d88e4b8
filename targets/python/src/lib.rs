//! Module `edge_lmm._native`: the engine and the two commands for the Python package `edge_lmm`, whose
//! Python part is in `targets/python/python`.

mod engine;
mod error;
mod media;
mod profile;
mod request;
mod stream;

use std::ffi::OsString;
use std::num::NonZeroUsize;

use edge_lmm::memory::CountingAllocator;
use pyo3::prelude::*;

/// Counts heap bytes, as in the command: timings and profiles contain them.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Engine and commands.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        engine::{Engine, Session},
        media::Media,
        profile::Profile,
        run_converter, run_runtime, set_threads,
        stream::Stream,
    };
}

/// Runs the command `edge-lmm`; the first argument is its name. Returns the exit code.
#[pyfunction]
fn run_runtime(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| edge_lmm_commands::main_of_library(arguments.into_iter()))
}

/// Runs the command `edge-lmm-convert`; the first argument is its name. Returns the exit code.
#[pyfunction]
fn run_converter(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| edge_lmm_convert::main(arguments.into_iter()))
}

/// Sets the number of threads that all models of this process compute with.
#[pyfunction]
fn set_threads(threads: NonZeroUsize) {
    edge_lmm::set_threads(threads);
}
