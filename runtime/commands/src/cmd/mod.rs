//! Subcommands, one file each.

mod answer;
mod bench;
mod bundle;
pub mod bundled;
mod cache;
mod chat;
mod completions;
mod constraint;
mod costs;
#[cfg(feature = "data")]
pub mod data;
mod demo;
mod doctor;
mod eval;
mod gpu;
mod inspect;
mod list;
mod man;
mod memory;
mod options;
pub mod profile;
mod progress;
#[cfg(feature = "pull")]
pub mod pull;
mod rm;
mod run;
pub mod serve;
mod show;
pub mod signals;
mod tokens;
mod watch;

use clap::Subcommand;

/// The subcommands of `edge-lmm`.
#[derive(Subcommand)]
pub enum Command {
    Run(run::Cmd),
    Chat(chat::Cmd),
    Eval(eval::Cmd),
    Profile(profile::Cmd),
    Tokens(tokens::Cmd),
    Bench(bench::Cmd),
    #[cfg(feature = "data")]
    Data(data::Cmd),
    Inspect(inspect::Cmd),
    Demo(demo::Cmd),
    Doctor(doctor::Cmd),
    Serve(serve::Cmd),
    #[cfg(feature = "pull")]
    Pull(pull::Cmd),
    List(list::Cmd),
    Show(show::Cmd),
    Rm(rm::Cmd),
    Watch(watch::Cmd),
    Bundle(bundle::Cmd),
    Completions(completions::Cmd),
    Man(man::Cmd),
}

impl Command {
    /// Runs the selected subcommand.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Run(cmd) => cmd.run(),
            Self::Chat(cmd) => cmd.run(),
            Self::Eval(cmd) => cmd.run(),
            Self::Profile(cmd) => cmd.run(),
            Self::Tokens(cmd) => cmd.run(),
            Self::Bench(cmd) => cmd.run(),
            #[cfg(feature = "data")]
            Self::Data(cmd) => cmd.run(),
            Self::Inspect(cmd) => cmd.run(),
            Self::Demo(cmd) => cmd.run(),
            Self::Doctor(cmd) => cmd.run(),
            Self::Serve(cmd) => cmd.run(),
            #[cfg(feature = "pull")]
            Self::Pull(cmd) => cmd.run(),
            Self::List(cmd) => cmd.run(),
            Self::Show(cmd) => cmd.run(),
            Self::Rm(cmd) => cmd.run(),
            Self::Watch(cmd) => cmd.run(),
            Self::Bundle(cmd) => cmd.run(),
            Self::Completions(cmd) => cmd.run(),
            Self::Man(cmd) => cmd.run(),
        }
    }
}
