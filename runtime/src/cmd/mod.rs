//! One file per subcommand.

mod chat;
mod demo;
mod doctor;
mod eval;
mod inspect;
mod options;
mod profile;
mod run;

use clap::Subcommand;

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    Run(run::Cmd),
    Chat(chat::Cmd),
    Eval(eval::Cmd),
    Profile(profile::Cmd),
    Inspect(inspect::Cmd),
    Demo(demo::Cmd),
    Doctor(doctor::Cmd),
}

impl Command {
    /// Runs the chosen one.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Run(cmd) => cmd.run(),
            Self::Chat(cmd) => cmd.run(),
            Self::Eval(cmd) => cmd.run(),
            Self::Profile(cmd) => cmd.run(),
            Self::Inspect(cmd) => cmd.run(),
            Self::Demo(cmd) => cmd.run(),
            Self::Doctor(cmd) => cmd.run(),
        }
    }
}
