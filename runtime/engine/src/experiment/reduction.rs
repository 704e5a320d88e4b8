//! Accuracy and time of reduced visual tokens on a question set.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::reduce::sampling::seed_of;
use edge_lmm_models::reduce::{ReductionStep, Reductions};
use serde::Serialize;

use crate::any_device::AnySession;
use crate::error::EngineError;
use crate::manifest::{Manifest, Question, is_right};
use crate::media::{Media, MediaError, user_message};
use crate::request::{Answer, Request};

/// Shares of the tokens that the default chains keep.
const SHARES: [&str; 5] = ["0.75", "0.5", "0.33", "0.25", "0.11"];

/// Settings of the experiment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The chains to compare, besides the model without reduction.
    pub chains: Vec<Reductions>,
    /// Options for the preparation of media; the chains replace its reductions.
    pub options: MediaOptions,
    /// Uses the first questions of every task only.
    pub limit: Option<usize>,
    /// Largest number of tokens of an answer.
    pub max_tokens: usize,
}

/// Results of a chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The chain; empty without reduction.
    pub reduce: String,
    /// Mean share of the visual tokens that are left at the end.
    pub kept: f64,
    /// Right answers.
    pub right: usize,
    /// Questions.
    pub questions: usize,
    /// Right answers and questions by task.
    pub tasks: BTreeMap<String, (usize, usize)>,
    /// Median time of the encoder for an image, in milliseconds.
    pub vision_ms: f64,
    /// Median time of the prefill of a prompt that shares nothing with another, in milliseconds.
    pub prefill_ms: f64,
}

impl Point {
    /// Returns the share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.questions.max(1) as f64
    }
}

/// Error of the experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReductionBenchError {
    /// A medium cannot be read.
    #[error("question {id}")]
    Media {
        /// The question.
        id: String,
        /// The cause.
        source: MediaError,
    },
    /// A question cannot be answered.
    #[error("question {id}, reduced by {reduce:?}")]
    Answer {
        /// The question.
        id: String,
        /// The chain.
        reduce: String,
        /// The cause.
        source: Box<EngineError>,
    },
}

/// Returns the chains that are compared by default: every method at several shares.
///
/// # Panics
/// Never: the chains are valid.
pub fn default_chains() -> Vec<Reductions> {
    let methods = [
        "random",
        "stride",
        "attention",
        "duplicates",
        "diverse",
        "merge",
        "language:1",
    ];
    let shares = methods.iter().flat_map(|method| {
        SHARES.map(|share| match *method {
            "duplicates" => {
                let percent = share.parse::<f64>().unwrap_or(1.0) * 100.0;
                format!("duplicates:{percent}%")
            }
            method => format!("{method}:{share}"),
        })
    });
    let tolerances = ["0", "1", "3", "6"].map(|tolerance| format!("duplicates:{tolerance}"));
    let chains = [
        "merge:0.25:3",
        "merge:0.25:4",
        "merge:0.33:3",
        "merge:0.5,diverse:0.22",
        "merge:0.33,diverse:0.33",
        "merge:0.25,diverse:0.44",
        "merge:0.25,diverse:0.5",
        "diverse:0.33,language:1:0.33",
    ];
    let all = shares.chain(tolerances).chain(chains.map(str::to_owned));
    all.filter_map(|chain| chain.parse().ok()).collect()
}

/// Answers the questions of a manifest without reduction and with every chain. `on_progress` gets
/// the number of answers so far, that of all answers, and the current chain.
///
/// # Errors
/// If a medium cannot be read or a question cannot be answered.
pub fn run(
    session: &mut AnySession,
    manifest: &Manifest,
    settings: &Settings,
    mut on_progress: impl FnMut(usize, usize, &str),
) -> Result<Vec<Point>, ReductionBenchError> {
    let questions = chosen(&manifest.questions, settings.limit);
    let none = Reductions::default();
    let chains: Vec<&Reductions> = std::iter::once(&none).chain(&settings.chains).collect();
    let total = chains.len() * questions.len();
    let mut whole = HashMap::new();
    let mut points = Vec::with_capacity(chains.len());
    for (i, chain) in chains.iter().enumerate() {
        let name = match chain.is_empty() {
            true => String::new(),
            false => chain.to_string(),
        };
        let options = MediaOptions {
            reductions: (*chain).clone(),
            ..settings.options.clone()
        };
        let mut run = Run::new(name);
        let mut medium: Option<(&str, Media)> = None;
        for (j, question) in questions.iter().enumerate() {
            on_progress(i * questions.len() + j, total, &run.point.reduce);
            let path = question.media_path.as_str();
            if medium.as_ref().is_none_or(|(last, _)| *last != path) {
                session.forget();
                medium = read(manifest, question)?.map(|medium| (path, medium));
            }
            let media: Vec<Media> = medium.iter().map(|(_, medium)| medium.clone()).collect();
            let answer = ask(session, question, &media, &options, settings.max_tokens);
            let answer = answer.map_err(|source| ReductionBenchError::Answer {
                id: question.id.clone(),
                reduce: run.point.reduce.clone(),
                source: source.into(),
            })?;
            if chain.is_empty() {
                whole.insert(path, answer.visual_tokens);
            }
            run.add(question, &answer, whole.get(path).copied().unwrap_or(0));
        }
        points.push(run.finish());
    }
    Ok(points)
}

fn read(manifest: &Manifest, question: &Question) -> Result<Option<Media>, ReductionBenchError> {
    let read = |path: std::path::PathBuf| {
        let source = crate::media::Source::file(&path)?;
        Media::read(&source, source.kind()?, crate::media::FrameSelection::All)
    };
    let medium = manifest.media_path(question).map(read).transpose();
    medium.map_err(|source| ReductionBenchError::Media {
        id: question.id.clone(),
        source,
    })
}

fn ask(
    session: &mut AnySession,
    question: &Question,
    media: &[Media],
    options: &MediaOptions,
    max_tokens: usize,
) -> Result<Answer, EngineError> {
    let messages = [user_message(media, &question.question)];
    let request = Request {
        media,
        options: MediaOptions {
            seed: seed_of(&question.media_path),
            ..options.clone()
        },
        max_tokens,
        timing: true,
        ..Request::new(&messages)
    };
    session.answer(&request, |_| ControlFlow::Continue(()))
}

/// Returns the first `limit` questions of every task, those about the same medium in a row.
fn chosen(questions: &[Question], limit: Option<usize>) -> Vec<&Question> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut chosen: Vec<&Question> = questions
        .iter()
        .filter(|question| {
            let count = seen.entry(&question.task).or_default();
            *count += 1;
            limit.is_none_or(|limit| *count <= limit)
        })
        .collect();
    chosen.sort_by_key(|question| &question.media_path);
    chosen
}

/// Sums over the questions of a chain.
struct Run {
    point: Point,
    vision: Vec<f64>,
    prefill: Vec<f64>,
}

impl Run {
    fn new(reduce: String) -> Self {
        Self {
            point: Point {
                reduce,
                kept: 0.0,
                right: 0,
                questions: 0,
                tasks: BTreeMap::new(),
                vision_ms: 0.0,
                prefill_ms: 0.0,
            },
            vision: Vec::new(),
            prefill: Vec::new(),
        }
    }

    fn add(&mut self, question: &Question, answer: &Answer, whole: usize) {
        let right = usize::from(is_right(&answer.text, &question.answer));
        let task = self.point.tasks.entry(question.task.clone()).or_default();
        *task = (task.0 + right, task.1 + 1);
        self.point.right += right;
        self.point.questions += 1;
        let last = answer.reductions.last();
        let left = last.map_or(answer.visual_tokens, |step: &ReductionStep| step.tokens);
        // Without visual tokens there is nothing to leave out.
        self.point.kept += match whole {
            0 => 1.0,
            whole => left as f64 / whole as f64,
        };
        let ms = |name| {
            answer
                .timing
                .stage(name)
                .map(|stage| stage.time.as_secs_f64() * 1e3)
        };
        self.vision.extend(ms("vision"));
        if answer.reused_tokens == 0 {
            self.prefill.extend(ms("prefill"));
        }
    }

    fn finish(mut self) -> Point {
        self.point.kept /= self.point.questions.max(1) as f64;
        self.point.vision_ms = median(self.vision);
        self.point.prefill_ms = median(self.prefill);
        self.point
    }
}

/// Returns the median; 0 without values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_chains_are_all_valid() {
        assert_eq!(default_chains().len(), 7 * SHARES.len() + 4 + 8);
    }

    #[test]
    fn questions_about_a_medium_stand_in_a_row() {
        let question = |id: &str, medium: &str, task: &str| Question {
            id: id.to_owned(),
            media_path: medium.to_owned(),
            question: String::new(),
            answer: String::new(),
            task: task.to_owned(),
            ..Question::default()
        };
        let questions = [
            question("1", "b", "x"),
            question("2", "a", "x"),
            question("3", "b", "y"),
            question("4", "a", "x"),
        ];
        let ids = |limit| -> Vec<&str> {
            let chosen = chosen(&questions, limit).into_iter();
            chosen.map(|question| question.id.as_str()).collect()
        };
        assert_eq!(ids(None), ["2", "4", "1", "3"]);
        assert_eq!(ids(Some(1)), ["1", "3"]);
    }
}
