//! `edge-lmm eval`: scores and latency on a question set.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::{Table, presets};
use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::metric::Metric;
use edge_lmm::output::Output;
use edge_lmm::reduce::sampling::seed_of;
use edge_lmm::{EngineError, MediaOptions, ModelError, Request, user_message};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, Serializer};

use crate::errors::message;
use crate::models;

use super::cache::CacheOptions;
use super::costs;
use super::options::{DeviceOptions, GenerationOptions, MediaArgs, PromptOptions, print_now};

/// Answers every question of a manifest and scores the answers.
///
/// The manifest is a CSV file with the columns id,media_path,question,answer,task and, optionally,
/// answers and choices (JSON lists), metric and sha256. By default, an answer is right if it equals
/// the expected one, ignoring case and surrounding whitespace. A question that cannot be answered is
/// reported and counted separately, and the exit code is 1.
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(value_parser = models::argument())]
    model: PathBuf,
    /// Question set
    #[arg(long, value_name = "M.csv")]
    manifest: PathBuf,
    /// Score answers by this metric instead of the column `metric` of the manifest; without either,
    /// exact. Partly right answers count as fractions
    #[arg(long, value_name = "NAME", value_parser = metrics())]
    metric: Option<Metric>,
    /// Use only the first N questions of every task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Skip questions about media that the model does not support; missing or damaged files still
    /// fail
    #[arg(long)]
    skip_unsupported: bool,
    /// Write `id,predicted` of every question to a file
    #[arg(long, value_name = "FILE.csv")]
    predictions: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    generation: GenerationOptions,
    /// Compute every question from the start, for latencies that do not depend on the questions
    /// before; by default, encoder outputs and common prefixes of prompts are computed once
    #[arg(long, conflicts_with = "cache")]
    no_reuse: bool,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    cache: CacheOptions,
}

#[derive(Default, Serialize)]
struct Score {
    /// Sum of the scores.
    #[serde(serialize_with = "integer_if_whole")]
    right: f64,
    questions: usize,
}

#[derive(Serialize)]
struct Report {
    accuracy: f64,
    #[serde(serialize_with = "integer_if_whole")]
    right: f64,
    questions: usize,
    skipped: usize,
    failures: Vec<Failure>,
    tasks: BTreeMap<String, Score>,
    median_ms: f64,
    /// Prompt tokens of all questions, and those among them that were not computed again.
    prompt_tokens: usize,
    reused_tokens: usize,
    predictions: Vec<Prediction>,
}

#[derive(Serialize)]
struct Prediction {
    id: String,
    predicted: String,
    /// The score is 1.
    right: bool,
    score: f64,
    ms: f64,
    prompt_tokens: usize,
    reused_tokens: usize,
}

/// A question without an answer.
#[derive(Serialize)]
struct Failure {
    id: String,
    error: String,
}

/// Parses the name of a metric.
fn metrics() -> impl TypedValueParser<Value = Metric> {
    PossibleValuesParser::new(Metric::ALL.map(Metric::name)).try_map(|name| name.parse::<Metric>())
}

/// Writes a sum of scores as an integer unless there are partly right answers.
fn integer_if_whole<S: Serializer>(sum: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if sum.fract() == 0.0 {
        serializer.serialize_u64(*sum as u64)
    } else {
        serializer.serialize_f64(*sum)
    }
}

/// Formats a sum of scores, with two digits if there are partly right answers.
fn sum(right: f64) -> String {
    if right.fract() == 0.0 {
        format!("{right}")
    } else {
        format!("{right:.2}")
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        self.generation.sampling()?;
        self.media.check()?;
        let manifest = Manifest::open(&self.manifest)?;
        let inputs = [self.model.as_path(), self.manifest.as_path()];
        let predictions = self.predictions.as_deref();
        let predictions = predictions
            .map(|path| Output::replace(path, inputs))
            .transpose()?;
        let engine = self.device.load(&self.model)?;
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        let mut session = engine.session();
        let questions = limited(&manifest.questions, self.limit);
        let progress = ProgressBar::new(questions.len() as u64).with_style(
            ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}")
                .context("progress bar")?,
        );
        let mut report = Report {
            accuracy: 0.0,
            right: 0.0,
            questions: 0,
            skipped: 0,
            failures: Vec::new(),
            tasks: BTreeMap::new(),
            median_ms: 0.0,
            prompt_tokens: 0,
            reused_tokens: 0,
            predictions: Vec::new(),
        };
        for question in questions {
            match self.ask(&mut session, &manifest, question) {
                Ok(prediction) => report.add(question, prediction),
                Err(error) if self.skip_unsupported && is_unsupported(&error) => {
                    report.skipped += 1;
                }
                Err(error) => {
                    let error = message(&error);
                    progress.suspend(|| eprintln!("error: question {}: {error}", question.id));
                    report.failures.push(Failure {
                        id: question.id.clone(),
                        error,
                    });
                }
            }
            progress.inc(1);
            progress.set_message(format!("{} right", sum(report.right)));
        }
        progress.finish_and_clear();
        report.finish();
        if let Some(file) = predictions {
            report.write_predictions(file)?;
        }
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            report.table()
        };
        print_now(&format!("{text}\n"))?;
        match report.failures.first() {
            None => Ok(()),
            Some(first) => bail!(
                "{} of {} questions could not be answered; the first is {}: {}",
                report.failures.len(),
                report.failures.len() + report.questions + report.skipped,
                first.id,
                first.error
            ),
        }
    }

    fn ask(
        &self,
        session: &mut edge_lmm::AnySession,
        manifest: &Manifest,
        question: &Question,
    ) -> anyhow::Result<Prediction> {
        let start = Instant::now();
        let media: Vec<_> = manifest
            .media_path(question)
            .map(|path| self.media.open(&path))
            .transpose()?
            .into_iter()
            .collect();
        let messages = [user_message(&media, &question.question)];
        if self.no_reuse {
            session.forget();
        }
        let request = Request {
            media: &media,
            options: MediaOptions {
                // Questions about the same medium see the same random tokens.
                seed: seed_of(&question.media_path),
                ..self.media.options()
            },
            parse_special: self.prompt_options.parse_special,
            ..self.generation.request(&messages)?
        };
        let answer = session.answer(&request, |_| ControlFlow::Continue(()))?;
        let score = question.score(&answer.text, self.metric);
        Ok(Prediction {
            id: question.id.clone(),
            right: score == 1.0,
            score,
            predicted: answer.text.trim().to_owned(),
            ms: start.elapsed().as_secs_f64() * 1e3,
            prompt_tokens: answer.prompt_tokens,
            reused_tokens: answer.reused_tokens,
        })
    }
}

/// Returns `true` if the model does not support the question's kind of media.
fn is_unsupported(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<EngineError>();
    matches!(
        error,
        Some(EngineError::Model(ModelError::Unsupported { .. }))
    )
}

/// Returns the first `limit` questions of every task, in order.
fn limited(questions: &[Question], limit: Option<usize>) -> Vec<&Question> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    questions
        .iter()
        .filter(|question| {
            let count = seen.entry(&question.task).or_default();
            *count += 1;
            limit.is_none_or(|limit| *count <= limit)
        })
        .collect()
}

impl Report {
    fn add(&mut self, question: &Question, prediction: Prediction) {
        let score = self.tasks.entry(question.task.clone()).or_default();
        score.questions += 1;
        score.right += prediction.score;
        self.questions += 1;
        self.right += prediction.score;
        self.prompt_tokens += prediction.prompt_tokens;
        self.reused_tokens += prediction.reused_tokens;
        self.predictions.push(prediction);
    }

    fn write_predictions(&self, file: Output) -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["id", "predicted"])?;
        for prediction in &self.predictions {
            writer.write_record([&prediction.id, &prediction.predicted])?;
        }
        let rows = writer
            .into_inner()
            .map_err(csv::IntoInnerError::into_error)?;
        Ok(file.finish_with(&rows)?)
    }

    fn finish(&mut self) {
        self.accuracy = self.right / self.questions.max(1) as f64;
        let mut times: Vec<f64> = self.predictions.iter().map(|p| p.ms).collect();
        times.sort_by(f64::total_cmp);
        self.median_ms = times.get(times.len() / 2).copied().unwrap_or_default();
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "task",
            "right",
            "questions",
            "accuracy",
        ]);
        let total = Score {
            right: self.right,
            questions: self.questions,
        };
        for (task, score) in self
            .tasks
            .iter()
            .map(|(task, score)| (task.as_str(), score))
            .chain([("total", &total)])
        {
            let accuracy = 100.0 * score.right / score.questions.max(1) as f64;
            table.add_row([
                task.to_owned(),
                sum(score.right),
                score.questions.to_string(),
                format!("{accuracy:.1} %"),
            ]);
        }
        let count = |n: usize, what: &str| match n {
            0 => String::new(),
            n => format!(", {n} {what}"),
        };
        format!(
            "{table}\nmedian {:.1} ms per question, {} of {} prompt tokens reused{}{}",
            self.median_ms,
            self.reused_tokens,
            self.prompt_tokens,
            count(self.skipped, "skipped"),
            count(self.failures.len(), "failed"),
        )
    }
}
