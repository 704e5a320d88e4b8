//! The result of a comparison.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::divergence::Divergence;
use super::size::Size;

/// Value of [`ComparisonReport::format`].
pub const FORMAT: &str = "edge-lmm comparison";
/// Value of [`ComparisonReport::version`].
pub const VERSION: u32 = 1;

/// Comparison of records with a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ComparisonReport {
    /// Always `edge-lmm comparison`.
    pub format: String,
    /// Version of this format.
    pub version: u32,
    /// The text whose tokens were predicted, if there is one.
    pub text: Option<TextReport>,
    /// The questions that were answered, if there are any.
    pub questions: Option<QuestionsReport>,
    /// The reference, then the candidates.
    pub models: Vec<ModelReport>,
}

/// The question set of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QuestionsReport {
    /// File of the manifest.
    pub file: String,
    /// Number of questions.
    pub questions: usize,
}

/// The text of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TextReport {
    /// File of the text or of its ids.
    pub file: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window_tokens: usize,
    /// Scored positions: those of the second half of each window.
    pub positions: usize,
}

/// One record of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelReport {
    /// File of the record.
    pub file: String,
    /// Its size.
    pub size: Size,
    /// Predictions of the text.
    pub predictions: Option<Predictions>,
    /// Answers to the questions.
    pub answers: Option<Answers>,
}

/// How a record predicts a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Predictions {
    /// Perplexity: the exponential of the mean negative logarithm of the probability of each scored
    /// token.
    pub perplexity: f64,
    /// Divergence from the reference; missing for the reference.
    pub divergence: Option<Divergence>,
    /// Share of positions with the most probable token of the reference; missing for the reference.
    pub top1: Option<f64>,
    /// Milliseconds of a window in the mean, for each stage: the layers (`prefill`) and the output
    /// head (`head`).
    pub stages_ms: BTreeMap<String, f64>,
}

/// How a record answers questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answers {
    /// Sum of the scores; partly right answers count as fractions.
    pub right: f64,
    /// Mean score.
    pub accuracy: f64,
    /// Share of questions with the same answer as the reference; missing for the reference.
    pub agreement: Option<f64>,
    /// Divergence from the reference at the first 32 tokens of the reference's answers, where a
    /// question counts as a window; missing for the reference and for another vocabulary than its.
    pub divergence: Option<Divergence>,
    /// Milliseconds of a question in the mean, for each stage.
    pub stages_ms: BTreeMap<String, f64>,
}
