//! `edge-lmm man`: the manual pages, for packages.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

/// Writes the manual pages, one for the program and one per subcommand.
#[derive(Args)]
#[command(hide = true)]
pub struct Cmd {
    /// The folder to write them to
    folder: PathBuf,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let mut cli = crate::Cli::command();
        cli.build();
        self.write("edge-lmm", cli.clone())?;
        for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = format!("edge-lmm-{}", command.get_name());
            self.write(&name, command.clone().name(name.clone()))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, command: Command) -> anyhow::Result<()> {
        let path = self.folder.join(format!("{name}.1"));
        let mut text = Vec::new();
        Man::new(command).render(&mut text)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}
