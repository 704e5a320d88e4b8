//! Build, check and packaging tasks: `cargo xtask --help`.

mod ci;

use clap::{Parser, Subcommand};

/// Build, check and packaging tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Ci(ci::Cmd),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Ci(cmd) => cmd.run(),
    }
}
