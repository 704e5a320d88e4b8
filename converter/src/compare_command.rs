//! `edge-lmm-convert compare`.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;
use edge_lmm::manifest::Manifest;
use edge_lmm::output::Output;
use indicatif::{ProgressBar, ProgressStyle};

use crate::compare::{
    Answers, ComparisonReport, FORMAT, ModelReport, Predictions, QuestionsReport, Scorer,
    TextReport, VERSION, Windows, answer, page, predict,
};
use crate::export::export;

/// Most tokens of a window of a text unless told otherwise.
const WINDOW: usize = 512;

/// Compares records with a reference: what a smaller format costs and what it saves.
///
/// The reference is usually the record of the same checkpoint in f32 or f16. With --text or --ids,
/// all records predict the next token at the same positions of a text. The table then has its
/// perplexity (PPL), the Kullback-Leibler divergence from the reference in nats per token (KL) with
/// its standard error, median and 99th percentile, and the share of positions with the same most
/// probable token (top-1). With --manifest, all records answer the questions of a set as
/// `edge-lmm eval` does, and the table has their accuracy, the share of answers that are the
/// reference's, and the divergence at the tokens of the reference's answers (KL of answers). Sizes
/// are those of the file, and the bits per weight of the layers, of the vocabulary (embeddings and
/// head) and of the whole file.
///
/// The text is cut into windows, which are processed independently; the second half of each window
/// is scored.
///
/// Example: edge-lmm-convert compare f32.bpk q4.bpk q8.bpk --text articles.txt --html compare.html
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
    /// Tokens of a window of --text [default: 512, or the context of the models if it is shorter]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Use only the first N windows
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Question set to answer
    #[arg(long, value_name = "M.csv", group = "what")]
    manifest: Option<PathBuf>,
    /// Write the weights of the candidate as f32 to a folder in the layout of Hugging Face; of
    /// several candidates, each to a folder of its own in it
    #[arg(long, value_name = "DIR", group = "what")]
    export: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write a page with plots of divergence and accuracy by size
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
}

impl Compare {
    pub fn run(&self) -> anyhow::Result<()> {
        let inputs = [&self.reference].into_iter().chain(&self.candidates);
        let inputs = inputs
            .chain(&self.text)
            .chain(&self.ids)
            .chain(&self.manifest);
        let html = self.html.as_deref();
        let html = html
            .map(|path| Output::replace(path, inputs.map(PathBuf::as_path)))
            .transpose()?;
        let paths = [&self.reference].into_iter().chain(&self.candidates);
        let mut models = paths
            .map(|path| Scorer::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(folder) = &self.export {
            self.export_to(folder, &models[1..])?;
        }
        let report = self.report(&mut models)?;
        if let Some(output) = html {
            output.finish_with(page(&report)?.as_bytes())?;
        }
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => println!("{}", table(&report)),
        }
        Ok(())
    }

    fn report(&self, models: &mut [Scorer]) -> anyhow::Result<ComparisonReport> {
        let manifest = self.manifest.as_deref();
        let manifest = manifest.map(Manifest::open).transpose()?;
        let windows = self.windows(models)?;
        let predictions = match &windows {
            Some((windows, _)) => Self::predict(models, windows)?,
            None => Vec::new(),
        };
        let answers = match &manifest {
            Some(manifest) => Self::answer(models, manifest)?,
            None => Vec::new(),
        };
        let model = |(index, model): (usize, &Scorer)| ModelReport {
            file: model.record().path().display().to_string(),
            size: model.size(),
            predictions: predictions.get(index).cloned(),
            answers: answers.get(index).cloned(),
        };
        Ok(ComparisonReport {
            format: FORMAT.to_owned(),
            version: VERSION,
            text: windows.as_ref().map(|(windows, file)| TextReport {
                file: file.display().to_string(),
                windows: windows.rows().len(),
                window_tokens: windows.window(),
                positions: windows.positions(),
            }),
            questions: manifest
                .as_ref()
                .zip(self.manifest.as_ref())
                .map(|(manifest, file)| QuestionsReport {
                    file: file.display().to_string(),
                    questions: manifest.questions.len(),
                }),
            models: models.iter().enumerate().map(model).collect(),
        })
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

    fn windows(&self, models: &[Scorer]) -> anyhow::Result<Option<(Windows, &Path)>> {
        let (windows, file) = match (&self.text, &self.ids) {
            (Some(text), _) => {
                let contexts = models.iter().map(Scorer::context_length);
                let longest = contexts.fold(WINDOW, usize::min);
                let tokenizer = models[0].record().tokenizer();
                let window = self.window.unwrap_or(longest);
                (Windows::of_text(text, tokenizer, window)?, text)
            }
            (None, Some(ids)) => (Windows::of_numpy(ids)?, ids),
            (None, None) => return Ok(None),
        };
        ensure!(
            self.windows != Some(0),
            "--windows is 0, expected at least 1"
        );
        Ok(Some((
            windows.first(self.windows.unwrap_or(usize::MAX)),
            file,
        )))
    }

    fn predict(models: &mut [Scorer], windows: &Windows) -> anyhow::Result<Vec<Predictions>> {
        let bar = bar(windows.rows().len(), "windows")?;
        let predictions = predict(models, windows, |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        Ok(predictions?)
    }

    fn answer(models: &[Scorer], manifest: &Manifest) -> anyhow::Result<Vec<Answers>> {
        let bar = bar(models.len() * manifest.questions.len(), "answers")?;
        let records = models.iter().map(Scorer::record);
        let answers = answer(records, manifest, |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        Ok(answers?)
    }
}

fn bar(length: usize, what: &str) -> anyhow::Result<ProgressBar> {
    let template = format!("{{bar:16}} {{pos}}/{{len}} {what}, {{eta}} left");
    Ok(ProgressBar::new(length as u64).with_style(ProgressStyle::with_template(&template)?))
}

/// A column of the table: its heading, and the text for a model.
type Column = (&'static str, fn(&ModelReport) -> String);

/// The columns about size, predictions and answers.
const SIZE: [Column; 4] = [
    ("MiB", |model| {
        format!("{:.1}", model.size.bytes as f64 / (1 << 20) as f64)
    }),
    ("layers", |model| format!("{:.2}", model.size.layer_bits)),
    ("vocabulary", |model| {
        format!("{:.2}", model.size.vocabulary_bits)
    }),
    ("file", |model| format!("{:.2}", model.size.file_bits)),
];
const PREDICTIONS: [Column; 7] = [
    ("PPL", |model| {
        number(predictions(model, |p| Some(p.perplexity)), 3)
    }),
    ("KL", |model| {
        number(predictions(model, |p| Some(p.divergence?.mean)), 4)
    }),
    ("±", |model| {
        number(predictions(model, |p| p.divergence?.standard_error), 4)
    }),
    ("median", |model| {
        number(predictions(model, |p| Some(p.divergence?.median)), 4)
    }),
    ("99 %", |model| {
        number(predictions(model, |p| Some(p.divergence?.p99)), 3)
    }),
    ("top-1", |model| percent(predictions(model, |p| p.top1))),
    ("ms/window", |model| {
        number(predictions(model, |p| Some(p.stages_ms.values().sum())), 0)
    }),
];
const ANSWERS: [Column; 4] = [
    ("accuracy", |model| {
        percent(model.answers.as_ref().map(|a| a.accuracy))
    }),
    ("same answers", |model| {
        percent(model.answers.as_ref().and_then(|a| a.agreement))
    }),
    ("KL of answers", |model| {
        let divergence = model.answers.as_ref().and_then(|a| a.divergence);
        number(divergence.map(|divergence| divergence.mean), 4)
    }),
    ("ms/question", |model| {
        let total = model.answers.as_ref().map(|a| a.stages_ms.values().sum());
        number(total, 0)
    }),
];

fn predictions(
    model: &ModelReport,
    value: impl FnOnce(&Predictions) -> Option<f64>,
) -> Option<f64> {
    value(model.predictions.as_ref()?)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// Formats the comparison: what was compared, and a table with one row per model.
fn table(report: &ComparisonReport) -> String {
    let mut lines = Vec::new();
    let mut columns: Vec<Column> = SIZE.to_vec();
    if let Some(text) = &report.text {
        lines.push(format!(
            "{} positions of {}, {} windows of {} tokens",
            text.positions, text.file, text.windows, text.window_tokens
        ));
        columns.extend(PREDICTIONS);
    }
    if let Some(questions) = &report.questions {
        lines.push(format!(
            "{} questions of {}",
            questions.questions, questions.file
        ));
        columns.extend(ANSWERS);
    }
    let name = |model: &ModelReport| {
        let file = Path::new(&model.file).file_name();
        file.map_or_else(
            || model.file.clone(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    let mut rows: Vec<Vec<String>> = vec![vec!["model".to_owned()]];
    rows[0].extend(columns.iter().map(|(heading, _)| (*heading).to_owned()));
    rows.extend(report.models.iter().map(|model| {
        let cells = columns.iter().map(|(_, cell)| cell(model));
        std::iter::once(name(model)).chain(cells).collect()
    }));
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    lines.extend(rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).skip(1);
        let cells: String = cells
            .map(|(cell, &width)| format!("  {cell:>width$}"))
            .collect();
        format!("{:<first$}{cells}", row[0], first = widths[0])
    }));
    lines.join("\n")
}
