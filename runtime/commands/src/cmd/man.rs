//! `edge-lmm man`: manual pages, for packages.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};

/// Writes the manual pages, one for the program and one for each subcommand.
#[derive(Args)]
#[command(hide = true)]
pub struct Cmd {
    /// Folder to write them to
    folder: PathBuf,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let folder = &self.folder;
        fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(crate::Cli::command(), folder))
            .with_context(|| format!("cannot write to {}", folder.display()))
    }
}
