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
pub struct ComparisonReport {
    /// Always `edge-lmm comparison`.
    pub format: String,
    /// Version of this format.
    pub version: u32,
    /// The text whose tokens were predicted.
    pub text: TextReport,
    /// The reference, then the candidates.
    pub models: Vec<ModelReport>,
}

/// The text of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
pub struct ModelReport {
    /// File of the record.
    pub file: String,
    /// Its size.
    pub size: Size,
    /// Perplexity of the text: the exponential of the mean negative logarithm of the probability of
    /// each scored token.
    pub perplexity: f64,
    /// Divergence from the reference; missing for the reference.
    pub divergence: Option<Divergence>,
    /// Share of positions with the most probable token of the reference; missing for the reference.
    pub top1: Option<f64>,
    /// Milliseconds of each stage: the layers (`prefill`) and the output head (`head`).
    pub stages_ms: BTreeMap<String, f64>,
}
