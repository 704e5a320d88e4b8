//! `edge-lmm bench kernels`: time of the kernels.

use std::num::NonZeroUsize;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use edge_lmm::experiment::kernels::{self, Report};
use edge_lmm_kernels::pool;
use indicatif::{ProgressBar, ProgressStyle};

use super::super::options::{parse_threads, print_now};

/// Times products and attention in the shapes of Qwen2-VL-2B and CLIP, without a model, and compares
/// them with the peak of this machine: memory bandwidth, and multiplications in registers.
///
/// EDGE_LMM_ISA selects the instruction set.
#[derive(Args)]
pub struct Cmd {
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(threads) = self.threads {
            edge_lmm::set_threads(threads);
        }
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let report = kernels::run(&pool::global(), |what| bar.set_message(what.to_owned()))?;
        bar.finish_and_clear();
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            table(&report)
        };
        print_now(&format!("{text}\n"))
    }
}

/// The measurements as a table, below the peaks of the machine.
fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "kernel", "weights", "shape", "ms", "GOP/s", "GB/s", "of peak",
    ]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for m in &report.measurements {
        let share = m
            .share
            .map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        table.add_row([
            m.what.clone(),
            m.format.clone(),
            m.shape.clone(),
            format!("{:.3}", m.ms),
            format!("{:.1}", m.gops),
            format!("{:.1}", m.gbs),
            share,
        ]);
    }
    let peaks: Vec<String> = report
        .operations_per_second
        .iter()
        .filter_map(|(format, speed)| Some(format!("{format} {:.0} GOP/s", (*speed)? * 1e-9)))
        .collect();
    format!(
        "{}, {} threads; peak: memory {:.1} GB/s, registers {}\n{table}",
        report.kernels,
        report.threads,
        report.read_bandwidth * 1e-9,
        if peaks.is_empty() {
            "not measured for this instruction set".to_owned()
        } else {
            peaks.join(", ")
        },
    )
}
