//! `edge-lmm bench reduction`: accuracy against visual tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use edge_lmm::experiment::reduction::{self, Point, Settings};
use edge_lmm::manifest::Manifest;
use edge_lmm::output::Output;
use edge_lmm::reduce::Reductions;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::super::options::{DeviceOptions, MediaArgs, print_now};

/// Answers a question set with fewer and fewer visual tokens, by several methods, and compares
/// accuracy, tokens, and the time of encoder and prefill.
///
/// Example: edge-lmm bench reduction scenes.bpk --manifest scenes/manifest.csv --limit 50 --chain
/// merge:0.5 --chain diverse:0.25
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert
    model: PathBuf,
    /// Question set
    #[arg(long, value_name = "M.csv")]
    manifest: PathBuf,
    /// Chain of methods to compare, as for --reduce of edge-lmm run; may be repeated [default: every
    /// method at several ratios]
    #[arg(long, value_name = "METHODS")]
    chain: Vec<Reductions>,
    /// Use only the first N questions of every task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_tokens: usize,
    /// Right answers of another program to print beside ours: reduce,task,right,questions
    #[arg(long, value_name = "FILE.csv")]
    reference: Option<PathBuf>,
    /// Write right answers by chain and task to a file: reduce,task,right,questions
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Draw accuracy against tokens
    #[cfg(feature = "plots")]
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    device: DeviceOptions,
}

/// Right answers of a chain for a task; the task `all` stands for the sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    reduce: String,
    task: String,
    right: usize,
    questions: usize,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let manifest = Manifest::open(&self.manifest)?;
        let reference = self.reference.as_deref().map(read_rows).transpose()?;
        let inputs = [self.model.as_path(), self.manifest.as_path()];
        let inputs = inputs.into_iter().chain(self.reference.as_deref());
        let output = |path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| Output::replace(path, inputs.clone()))
                .transpose()
        };
        let csv = output(&self.csv)?;
        #[cfg(feature = "plots")]
        let svg = output(&self.svg)?;
        let mut session = self.device.load(&self.model)?.session();
        let settings = Settings {
            chains: match self.chain.is_empty() {
                true => reduction::default_chains(),
                false => self.chain.clone(),
            },
            options: self.media.options(),
            limit: self.limit,
            max_tokens: self.max_tokens,
        };
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
            "{bar:40} {pos}/{len} {msg} {eta}",
        )?);
        let points = reduction::run(&mut session, &manifest, &settings, |done, total, chain| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(chain.to_owned());
        })?;
        bar.finish_and_clear();
        if let Some(file) = csv {
            write_rows(file, &points)?;
        }
        #[cfg(feature = "plots")]
        if let Some(file) = svg {
            file.finish_with(super::plot::accuracy(&points)?.as_bytes())?;
        }
        let text = match self.json {
            true => serde_json::to_string(&points)?,
            false => table(&points, reference.as_deref()),
        };
        print_now(&format!("{text}\n"))
    }
}

fn read_rows(path: &Path) -> anyhow::Result<Vec<Row>> {
    let rows = csv::Reader::from_path(path).and_then(|mut reader| reader.deserialize().collect());
    rows.with_context(|| format!("{}: expected reduce,task,right,questions", path.display()))
}

/// Returns the rows of a chain, the sum last.
fn rows(point: &Point) -> Vec<Row> {
    let row = |task: &str, (right, questions): (usize, usize)| Row {
        reduce: point.reduce.clone(),
        task: task.to_owned(),
        right,
        questions,
    };
    let tasks = point.tasks.iter();
    tasks
        .map(|(task, &score)| row(task, score))
        .chain([row("all", (point.right, point.questions))])
        .collect()
}

fn write_rows(file: Output, points: &[Point]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in points.iter().flat_map(rows) {
        writer.serialize(row)?;
    }
    let bytes = writer
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)?;
    Ok(file.finish_with(&bytes)?)
}

fn percent(right: usize, questions: usize) -> String {
    format!("{:.1}", 100.0 * right as f64 / questions.max(1) as f64)
}

/// Formats the points: tokens, accuracy by task and in all, beside the reference's if there is one.
fn table(points: &[Point], reference: Option<&[Row]>) -> String {
    let tasks: Vec<&String> = points
        .first()
        .into_iter()
        .flat_map(|p| p.tasks.keys())
        .collect();
    let expected: BTreeMap<(&str, &str), &Row> = reference
        .into_iter()
        .flatten()
        .map(|row| ((row.reduce.as_str(), row.task.as_str()), row))
        .collect();
    let mut header = vec!["reduce", "tokens %", "vision ms", "prefill ms"];
    header.extend(tasks.iter().map(|task| task.as_str()));
    header.push("all");
    if reference.is_some() {
        header.push("reference");
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for point in points {
        let reduce = match point.reduce.as_str() {
            "" => "none",
            chain => chain,
        };
        let mut cells = vec![
            reduce.to_owned(),
            format!("{:.1}", 100.0 * point.kept),
            format!("{:.1}", point.vision_ms),
            format!("{:.1}", point.prefill_ms),
        ];
        cells.extend(
            rows(point)
                .iter()
                .map(|row| percent(row.right, row.questions)),
        );
        if reference.is_some() {
            let row = expected.get(&(point.reduce.as_str(), "all"));
            cells.push(row.map_or("-".to_owned(), |row| percent(row.right, row.questions)));
        }
        table.add_row(cells);
    }
    table.to_string()
}
