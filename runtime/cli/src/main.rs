//! The program `edge-lmm`.

use std::process::ExitCode;

use edge_lmm::memory::CountingAllocator;

/// Counts heap bytes, so that the timing table can say what a stage needed.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    edge_lmm_commands::main(std::env::args_os()).into()
}
