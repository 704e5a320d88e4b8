//! `edge-lmm bench`: repeatable measurements.

mod kernels;
#[cfg(feature = "plots")]
mod plot;
mod reduction;

use clap::{Args, Subcommand};

/// Runs an experiment and prints its table.
#[derive(Args)]
pub struct Cmd {
    #[command(subcommand)]
    experiment: Experiment,
}

/// The experiments.
#[derive(Subcommand)]
enum Experiment {
    Kernels(kernels::Cmd),
    Reduction(Box<reduction::Cmd>),
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        match self.experiment {
            Experiment::Kernels(cmd) => cmd.run(),
            Experiment::Reduction(cmd) => cmd.run(),
        }
    }
}
