//! Texts and questions on which statistics are collected.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::one_line;
use tokenizers::Tokenizer;

use super::{CalibrationError, Method};
use crate::plan::Plan;

/// The text that is used if no other is given.
const BUILT_IN: &str = include_str!("text.txt");
/// Tokens of a window of text.
const WINDOW: usize = 512;
/// Tokens of all texts together.
const TOKENS: usize = 40 * WINDOW;
/// Most questions.
const QUESTIONS: usize = 128;
/// Shorter rests of a text are left out.
const SHORTEST: usize = 16;

/// Samples for calibration: texts, and questions about media with their answers.
#[derive(Debug, Default)]
pub struct Samples {
    texts: Vec<String>,
    pub(crate) manifests: Vec<Arc<Manifest>>,
}

impl Samples {
    /// Returns the samples that need no file: prose, code, lists and questions in several languages.
    pub fn built_in() -> Self {
        Self {
            texts: vec![BUILT_IN.to_owned()],
            manifests: Vec::new(),
        }
    }

    /// Reads question sets (`.csv`) and texts (all other files).
    ///
    /// # Errors
    /// If a file cannot be read, is no question set, or has no text.
    pub fn read(paths: &[PathBuf]) -> Result<Self, CalibrationError> {
        let mut samples = Self::default();
        for path in paths {
            if path.extension().is_some_and(|extension| extension == "csv") {
                let manifest = Manifest::open(path).map_err(|error| CalibrationError::Samples {
                    reason: one_line(&error),
                })?;
                samples.manifests.push(Arc::new(manifest));
            } else {
                samples.texts.push(read_text(path)?);
            }
        }
        Ok(samples)
    }

    /// Returns the texts.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    /// Returns questions at equal distances, at most [`QUESTIONS`].
    pub(crate) fn questions(&self) -> Vec<(Arc<Manifest>, Question)> {
        let all: Vec<_> = (self.manifests.iter())
            .flat_map(|manifest| manifest.questions.iter().map(move |q| (manifest, q)))
            .collect();
        let count = all.len().min(QUESTIONS);
        let chosen = (0..count).map(|i| all[i * all.len() / count]);
        chosen
            .map(|(manifest, question)| (manifest.clone(), question.clone()))
            .collect()
    }

    /// Cuts the texts into windows of tokens, each with the token that the tokenizer puts before a
    /// text. Of long texts, windows at equal distances are taken.
    pub(crate) fn windows(
        &self,
        tokenizer: &str,
        context: usize,
        most_tokens: usize,
    ) -> Result<Vec<Vec<u32>>, CalibrationError> {
        let invalid = |error: tokenizers::Error| CalibrationError::Samples {
            reason: format!(
                "the tokenizer cannot encode the text: {}",
                one_line(&*error)
            ),
        };
        let tokenizer = Tokenizer::from_str(tokenizer).map_err(invalid)?;
        let empty = tokenizer.encode_fast("", true).map_err(invalid)?;
        let begin = empty.get_ids().first().copied();
        let window = WINDOW
            .min(context)
            .saturating_sub(usize::from(begin.is_some()));
        let tokens = TOKENS.min(most_tokens);
        let most = (tokens / WINDOW).div_ceil(self.texts.len().max(1)).max(1);
        let mut windows = Vec::new();
        for text in &self.texts {
            let ids = tokenizer.encode_fast(&**text, false).map_err(invalid)?;
            let all: Vec<&[u32]> = (ids.get_ids().chunks(window.max(1)))
                .filter(|ids| ids.len() >= SHORTEST.min(window))
                .collect();
            let count = most.min(all.len());
            let chosen = (0..count).map(|i| all[i * all.len() / count]);
            windows.extend(chosen.map(|ids| begin.iter().chain(ids).copied().collect::<Vec<_>>()));
        }
        Ok(windows)
    }
}

/// Returns how many tokens can be in the model at the same time with `memory` bytes for them and the
/// statistics of the widest weight.
pub(super) fn most_tokens(plan: &Plan, method: Method, memory: usize) -> usize {
    let quantized = plan.weights.iter().filter(|weight| weight.spec.product);
    let (mut widest, mut keys) = (0, 0);
    for weight in quantized {
        let width = weight.spec.cols();
        widest = widest.max(width);
        // Keys and values are in the outputs of an attention's first layer.
        if weight.spec.name.contains("qkv") {
            keys += weight.spec.rows().saturating_sub(width);
        }
    }
    let left = memory.saturating_sub(memory_of_sums(plan, method));
    // A method that compares with the float model runs each sample twice.
    let models = if method == Method::Best { 2 } else { 1 };
    left / (models * size_of::<f32>() * (3 * widest + keys)).max(1)
}

/// Returns the memory that a method needs for the sums of the widest weight in bytes.
pub fn memory_of_sums(plan: &Plan, method: Method) -> usize {
    let quantized = plan.weights.iter().filter(|weight| weight.spec.product);
    let summed = quantized.filter(|weight| method.needs_products(weight, plan));
    let widest = summed.map(|weight| weight.spec.cols()).max().unwrap_or(0);
    // The products and the drift, a factor, and two copies while it is computed.
    5 * size_of::<f32>() * widest * widest
}

fn read_text(path: &Path) -> Result<String, CalibrationError> {
    let text = std::fs::read_to_string(path).map_err(|error| CalibrationError::Samples {
        reason: format!("cannot read {}: {error}", path.display()),
    })?;
    if text.trim().is_empty() {
        return Err(CalibrationError::Samples {
            reason: format!("{} has no text", path.display()),
        });
    }
    Ok(text)
}
