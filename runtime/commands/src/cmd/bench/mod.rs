//! `edge-lmm bench`: repeatable measurements.

mod experiment;
#[cfg(feature = "plots")]
mod figures;
mod kernels;
mod list;
mod merge;
mod output;
mod paper;
#[cfg(feature = "plots")]
pub mod plot;
mod speculation;

use clap::{Args, Subcommand};

/// Runs an experiment and prints its table.
///
/// `edge-lmm bench list` explains each experiment. All but kernels and speculation take the same options.
#[derive(Args)]
pub struct Cmd {
    #[command(subcommand)]
    experiment: Bench,
}

/// The experiments, and commands around them.
#[derive(Subcommand)]
enum Bench {
    List(list::Cmd),
    Merge(merge::Cmd),
    Paper(Box<paper::Cmd>),
    Kernels(kernels::Cmd),
    Speculation(speculation::Cmd),
    #[command(flatten)]
    Experiment(Box<experiment::Cmd>),
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        match self.experiment {
            Bench::List(cmd) => cmd.run(),
            Bench::Merge(cmd) => cmd.run(),
            Bench::Paper(cmd) => cmd.run(),
            Bench::Kernels(cmd) => cmd.run(),
            Bench::Speculation(cmd) => cmd.run(),
            Bench::Experiment(cmd) => cmd.run(),
        }
    }
}
