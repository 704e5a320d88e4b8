//! `edge-lmm bench speculation`: gain of speculative decoding.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use edge_lmm::Speculation;
use edge_lmm::experiment::speculation::{Options, Report};
use indicatif::{ProgressBar, ProgressStyle};

use super::super::options::{DeviceOptions, SpeculationOptions, print_now};

/// Answers three kinds of text with and without speculation in turn, and measures what a step costs
/// that verifies drafts. Without --speculate, drafts are those of auto.
///
/// Example: edge-lmm bench speculation qwen2-vl-2b.bpk --runs 5
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert
    model: PathBuf,
    /// Maximum tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Answers of each text with and without speculation; the medians are printed
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    #[command(flatten)]
    speculation: SpeculationOptions,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        self.speculation.check()?;
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar.set_message("load");
        let engine = self.device.load(&self.model)?;
        self.speculation.load_draft(&self.device, &engine)?;
        let options = Options {
            max_tokens: self.max_tokens,
            runs: self.runs as usize,
            speculation: match self.speculation.mode(engine.device()) {
                Speculation::Off => Speculation::Auto,
                speculation => speculation,
            },
        };
        let report =
            engine.measure_speculation(options, |what| bar.set_message(what.to_owned()))?;
        bar.finish_and_clear();
        let text = match self.json {
            true => serde_json::to_string(&report)?,
            false => tables(&report),
        };
        print_now(&format!("{text}\n"))
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The steps, the forced acceptance and the texts as three tables.
fn tables(report: &Report) -> String {
    let mut steps = table(["tokens of a step", "ms", "of one token"]);
    for step in &report.steps {
        steps.add_row([
            step.tokens.to_string(),
            format!("{:.2}", step.ms),
            format!("{:.2}", step.ratio),
        ]);
    }
    let mut forced = table(["accepted of 7 drafted", "speed"]);
    for row in &report.forced {
        let share = format!("{:.0} %", 100.0 * row.acceptance);
        forced.add_row([share, format!("{:.2}x", row.ratio)]);
    }
    let mut texts = table([
        "text", "tokens", "without", "with", "speed", "steps", "drafted", "accepted", "answers",
    ]);
    for text in &report.texts {
        let counts = text.counts;
        texts.add_row([
            text.text.to_owned(),
            text.tokens.to_string(),
            format!("{:.1} tokens/s", text.without),
            format!("{:.1} tokens/s", text.with),
            format!("{:.2}x", text.ratio),
            counts.steps.to_string(),
            counts.drafted.to_string(),
            counts.accepted.to_string(),
            if text.same { "same" } else { "differ" }.to_owned(),
        ]);
    }
    match report.steps.is_empty() {
        true => texts.to_string(),
        false => format!("{steps}\n\n{forced}\n\n{texts}"),
    }
}
