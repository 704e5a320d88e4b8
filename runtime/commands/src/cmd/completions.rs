//! `edge-lmm completions`: shell completions.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::options::print_now;

/// Prints completions for a shell.
///
/// Example: edge-lmm completions bash | sudo tee /usr/share/bash-completion/completions/edge-lmm
#[derive(Args)]
pub struct Cmd {
    /// Shell to print completions for
    shell: Shell,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut crate::Cli::command(),
            "edge-lmm",
            &mut text,
        );
        print_now(&String::from_utf8(text)?)
    }
}
