//! The `edge-lmm` command.

mod cmd;
mod errors;
#[cfg(feature = "fuzz")]
pub mod fuzz;
#[cfg(any(feature = "data", feature = "pull"))]
mod hub;
mod models;
mod page;
mod summary;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};
use edge_lmm::memory;

/// Runs large multimodal models on small devices and says where the time goes.
///
/// A model is one record file (.bpk), made by edge-lmm-convert from a Hugging Face checkpoint or
/// a GGUF file. Try `edge-lmm demo` first: it needs no file at all.
///
/// Answers go to standard output, everything else to standard error. Set RUST_LOG=debug for more.
#[derive(Parser)]
#[command(name = "edge-lmm", version, max_term_width = 100)]
struct Cli {
    /// Folder of the models that can be used by name [default: EDGE_LMM_MODELS, or edge-lmm below
    /// XDG_DATA_HOME or ~/.local/share]
    // Read before the command line is parsed, which resolves the names.
    #[arg(long = "models", value_name = "DIR", global = true)]
    _models: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: cmd::Command,
}

/// Runs the command with its arguments, the first of which is the name of the program. Returns the exit
/// code; `--help` and wrong arguments end the process.
pub fn main(arguments: impl Iterator<Item = OsString>) -> u8 {
    exit_code(|| {
        let command = Cli::command();
        let arguments = cmd::bundled::arguments(&command, arguments)?;
        let variable = |name: &str| std::env::var_os(name);
        let arguments = cmd::serve::config::arguments(&command, arguments, variable)?;
        parse(&command, arguments)?.run()
    })
}

/// Runs the command like [`main`], in a process whose executable is another program, such as the
/// interpreter of a script.
pub fn main_of_library(arguments: impl Iterator<Item = OsString>) -> u8 {
    exit_code(|| {
        let variable = |name: &str| std::env::var_os(name);
        let parser = Cli::command();
        let arguments = cmd::serve::config::arguments(&parser, arguments.collect(), variable)?;
        let command = parse(&parser, arguments)?;
        if let cmd::Command::Bundle(bundle) = &command {
            bundle.check_program_is_named()?;
        }
        command.run()
    })
}

/// Parses the arguments after those of the model's preset were added.
fn parse(command: &clap::Command, arguments: Vec<OsString>) -> anyhow::Result<cmd::Command> {
    models::choose_folder(&arguments);
    let arguments = models::preset::arguments(command, arguments);
    Ok(Cli::parse_from(arguments).command)
}

fn exit_code(run: impl FnOnce() -> anyhow::Result<()>) -> u8 {
    memory::keep_large_blocks();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Err(error) = cmd::signals::install() {
        log::warn!("unfinished files stay behind when a signal ends the program: {error}");
    }
    match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", errors::message(&error));
            1
        }
    }
}
