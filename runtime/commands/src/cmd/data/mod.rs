//! `edge-lmm data`: question sets from published datasets.

mod archive;
mod checksums;
mod choose;
mod datasets;
mod extract;
mod media;
mod names;
mod output;
mod prepare;
mod row;
mod sample;
mod soundtrack;
mod source;
mod synthetic;
mod tables;
mod ytdlp;

use clap::{Args, Subcommand};

/// Prepares question sets.
#[derive(Args)]
pub struct Cmd {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    Prepare(prepare::Cmd),
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Action::Prepare(cmd) => cmd.run(),
        }
    }
}
