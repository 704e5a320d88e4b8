//! The `edge-lmm` command.

mod cmd;
mod errors;
mod page;
mod summary;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use edge_lmm::memory::{self, CountingAllocator};

/// Counts heap bytes, so that the timing table can say what a stage needed.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs large multimodal models on small devices and says where the time goes.
///
/// A model is one record file (.bpk), made by edge-lmm-convert from a Hugging Face checkpoint or
/// a GGUF file. Try `edge-lmm demo` first: it needs no file at all.
///
/// Answers go to standard output, everything else to standard error. Set RUST_LOG=debug for more.
#[derive(Parser)]
#[command(name = "edge-lmm", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: cmd::Command,
}

fn main() -> ExitCode {
    memory::keep_large_blocks();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Err(error) = cmd::signals::install() {
        log::warn!("unfinished files stay behind when a signal ends the program: {error}");
    }
    let command = Cli::command();
    let arguments = cmd::bundled::arguments(&command, std::env::args_os()).and_then(|given| {
        cmd::serve::config::arguments(&command, given, |name| std::env::var_os(name))
    });
    match arguments.and_then(|arguments| Cli::parse_from(arguments).command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", errors::message(&error));
            ExitCode::FAILURE
        }
    }
}
