//! Build, check and packaging tasks: `cargo xtask --help`.

mod bundle;
mod ci;
mod cross;
mod deb;
mod docs;
mod elf;
mod emulate;
mod figure;
mod fuzz;
mod goldens;
mod package;
mod sbom;
mod shell;

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
    Cross(cross::Cmd),
    Bundle(bundle::Cmd),
    Package(package::Cmd),
    Docs(docs::Cmd),
    Figure(figure::Cmd),
    Fuzz(fuzz::Cmd),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Ci(cmd) => cmd.run(),
        Task::Cross(cmd) => cmd.run(),
        Task::Bundle(cmd) => cmd.run(),
        Task::Package(cmd) => cmd.run(),
        Task::Docs(cmd) => cmd.run(),
        Task::Figure(cmd) => cmd.run(),
        Task::Fuzz(cmd) => cmd.run(),
    }
}
