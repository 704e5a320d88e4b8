//! `edge-lmm bench`: repeatable measurements.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use edge_lmm::experiment::kernels;
use edge_lmm_kernels::pool;
use indicatif::{ProgressBar, ProgressStyle};

use super::options::{parse_threads, print_now};

/// Runs an experiment and prints its table.
///
/// `kernels` needs no model: it times products and attention in the shapes of Qwen2-VL-2B and CLIP
/// and compares them with the peak of this machine: memory bandwidth, and multiplications in
/// registers. EDGE_LMM_ISA selects the instruction set.
#[derive(Args)]
pub struct Cmd {
    /// Experiment to run
    #[arg(value_enum)]
    experiment: Experiment,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// The experiments.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Experiment {
    /// Products and attention in the shapes of real models
    Kernels,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let Experiment::Kernels = self.experiment;
        if let Some(threads) = self.threads {
            pool::set_global_threads(threads);
        }
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let report = kernels::run(&pool::global(), |what| bar.set_message(what.to_owned()))?;
        bar.finish_and_clear();
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            report.table()
        };
        print_now(&format!("{text}\n"))
    }
}
