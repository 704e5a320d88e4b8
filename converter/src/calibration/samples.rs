//! What the model sees while statistics are collected.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use edge_lmm::manifest::Manifest;
use edge_lmm::one_line;
use tokenizers::Tokenizer;

use super::CalibrationError;

/// The text that is used if no other is given.
const BUILT_IN: &str = include_str!("text.txt");
/// Tokens of a window of text.
const WINDOW: usize = 512;
/// Tokens of all texts together.
const TOKENS: usize = 40 * WINDOW;
/// Shorter rests of a text are left out.
const SHORTEST: usize = 16;

/// Samples for calibration: texts, and questions about media.
#[derive(Debug, Default)]
pub struct Samples {
    texts: Vec<String>,
    /// Question sets, whose answers are seen, too.
    pub manifests: Vec<Manifest>,
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
                samples.manifests.push(manifest);
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

    /// Cuts the texts into windows of tokens, each with the token that the tokenizer puts before a
    /// text. Of long texts, windows at equal distances are taken.
    pub(super) fn windows(
        &self,
        tokenizer: &str,
        context: usize,
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
        let most = (TOKENS / WINDOW).div_ceil(self.texts.len().max(1));
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
