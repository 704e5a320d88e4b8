//! `edge-lmm-convert compare`.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;
use edge_lmm_convert::compare::{ComparisonReport, ModelReport, Scorer, Windows, compare_text};
use edge_lmm_convert::export::export;
use indicatif::{ProgressBar, ProgressStyle};

/// Compares records with a reference: what a smaller format costs and what it saves.
///
/// All records predict the next token at the same positions of a text. The reference is usually the
/// record of the same checkpoint in f32 or f16. The table has the perplexity of the text, the
/// Kullback-Leibler divergence from the reference with its standard error, median and 99th
/// percentile, the share of positions with the same most probable token, the size of the file and
/// the bits per weight of the layers, of the vocabulary (embeddings and head) and of the file.
///
/// The text is cut into windows, which are processed independently; the second half of each window
/// is scored.
///
/// Example: edge-lmm-convert compare f32.bpk q4.bpk q8.bpk --text articles.txt
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct Compare {
    /// Record with the most exact weights (.bpk)
    reference: PathBuf,
    /// Records to compare with it
    #[arg(required = true, value_name = "CANDIDATE")]
    candidates: Vec<PathBuf>,
    /// Text whose tokens are predicted
    #[arg(long, value_name = "T.txt", group = "what", conflicts_with = "ids")]
    text: Option<PathBuf>,
    /// Token ids to predict instead of a text: a NumPy array with one window per row
    #[arg(long, value_name = "FILE.npy", group = "what")]
    ids: Option<PathBuf>,
    /// Tokens of a window of --text
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Use only the first N windows
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Write the weights of the candidate as f32 to a folder in the layout of Hugging Face; of
    /// several candidates, each to a folder of its own in it
    #[arg(long, value_name = "DIR", group = "what")]
    export: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub fn run(&self) -> anyhow::Result<()> {
        let paths = std::iter::once(&self.reference).chain(&self.candidates);
        let mut models = paths
            .map(|path| Scorer::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(folder) = &self.export {
            self.export_to(folder, &models[1..])?;
        }
        let Some(windows) = self.windows(&models[0])? else {
            return Ok(());
        };
        let report = self.compare(&mut models, &windows)?;
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => println!("{}", table(&report)),
        }
        Ok(())
    }

    fn export_to(&self, folder: &Path, candidates: &[Scorer]) -> anyhow::Result<()> {
        for (model, path) in candidates.iter().zip(&self.candidates) {
            let folder = match candidates.len() {
                1 => folder.to_owned(),
                _ => folder.join(path.file_stem().unwrap_or_default()),
            };
            export(model.record(), &folder)?;
            eprintln!("wrote {}", folder.display());
        }
        Ok(())
    }

    fn windows(&self, reference: &Scorer) -> anyhow::Result<Option<Windows>> {
        let windows = match (&self.text, &self.ids) {
            (Some(text), _) => Windows::of_text(text, reference.record().tokenizer(), self.window)?,
            (None, Some(ids)) => Windows::of_numpy(ids)?,
            (None, None) => return Ok(None),
        };
        ensure!(
            self.windows != Some(0),
            "--windows is 0, expected at least 1"
        );
        Ok(Some(windows.first(self.windows.unwrap_or(usize::MAX))))
    }

    fn compare(
        &self,
        models: &mut [Scorer],
        windows: &Windows,
    ) -> anyhow::Result<ComparisonReport> {
        let bar = ProgressBar::new(windows.rows().len() as u64).with_style(
            ProgressStyle::with_template("{bar:16} {pos}/{len} windows, {eta} left")?,
        );
        let file = self.text.as_ref().or(self.ids.as_ref());
        let file = file.map(|file| file.display().to_string());
        let progress = |done| bar.set_position(done as u64);
        let report = compare_text(models, windows, &file.unwrap_or_default(), progress);
        bar.finish_and_clear();
        Ok(report?)
    }
}

/// Formats the comparison as a table with one row per model.
fn table(report: &ComparisonReport) -> String {
    let header = [
        "model",
        "PPL",
        "KL",
        "±",
        "median",
        "99 %",
        "top-1",
        "size",
        "layers",
        "vocabulary",
        "file",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(report.models.iter().map(cells));
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String; 11]| {
        let (name, rest) = (&row[0], &row[1..]);
        let rest = rest.iter().zip(&widths[1..]);
        let rest: String = rest
            .map(|(cell, &width)| format!("  {cell:>width$}"))
            .collect();
        format!("{name:<first$}{rest}", first = widths[0])
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    format!(
        "{} positions of {}, {} windows of {} tokens; KL in nats per token, sizes in MiB and bits per \
         weight\n{}",
        report.text.positions,
        report.text.file,
        report.text.windows,
        report.text.window_tokens,
        lines.join("\n")
    )
}

fn cells(model: &ModelReport) -> [String; 11] {
    let (divergence, size) = (model.divergence, model.size);
    let of = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    let file = Path::new(&model.file).file_name();
    [
        file.map_or_else(|| model.file.clone(), |name| name.to_string_lossy().into()),
        format!("{:.3}", model.perplexity),
        of(divergence.map(|d| d.mean), 4),
        of(divergence.and_then(|d| d.standard_error), 4),
        of(divergence.map(|d| d.median), 4),
        of(divergence.map(|d| d.p99), 3),
        model
            .top1
            .map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
        format!("{:.1}", size.bytes as f64 / (1 << 20) as f64),
        format!("{:.2}", size.layer_bits),
        format!("{:.2}", size.vocabulary_bits),
        format!("{:.2}", size.file_bits),
    ]
}
