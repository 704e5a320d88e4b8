//! `edge-lmm bench merge`: the shards of an experiment as one.

use std::path::PathBuf;

use clap::Args;
use edge_lmm::experiment;

use super::output::OutputOptions;

/// Joins the results of all shards of an experiment and prints its table.
///
/// Checks that the shards have the same parameters and that none is missing or incomplete. The
/// models are not needed.
#[derive(Args)]
pub struct Cmd {
    /// Folders of results, one for each shard
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// New folder for the joined results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputOptions,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let files = self.output.reserve([])?;
        let (plan, lines) = experiment::merge(&self.folders, &self.out)?;
        files.write(&experiment::report(&plan, &lines)?)
    }
}
