//! Texts and examples on which statistics are collected.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use edge_lmm::manifest::Manifest;
use edge_lmm::{Cpu, one_line};
use edge_lmm_models::family::BuiltModel;
use tokenizers::Tokenizer;

use super::CalibrationError;
use super::example::Example;

/// The text that is used if no other is given.
const BUILT_IN: &str = include_str!("text.txt");
/// Tokens of a window of text.
const WINDOW: usize = 512;
/// Tokens of all texts together.
const TOKENS: usize = 40 * WINDOW;
/// Most questions of files.
const QUESTIONS: usize = 128;
/// Most generated pictures.
const PICTURES: usize = 12;
/// Tokens of all generated pictures together, if more than one has them.
const PICTURE_TOKENS: usize = 4096;
/// Shorter rests of a text are left out.
const SHORTEST: usize = 16;

/// Samples for calibration: texts, and questions about media with their answers.
#[derive(Debug, Default)]
pub struct Samples {
    texts: Vec<String>,
    pub(crate) manifests: Vec<Arc<Manifest>>,
    has_pictures: bool,
}

impl Samples {
    /// Returns the samples that need no file: prose, code, lists and questions in several languages,
    /// and generated pictures for models that take images.
    pub fn built_in() -> Self {
        Self {
            texts: vec![BUILT_IN.to_owned()],
            manifests: Vec::new(),
            has_pictures: true,
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

    /// Returns questions at equal distances, at most [`QUESTIONS`], and pictures that `model` takes.
    pub(crate) fn examples(&self, model: &dyn BuiltModel<Cpu>) -> Vec<Example> {
        let all = (self.manifests.iter()).flat_map(|manifest| {
            let questions = manifest.questions.iter();
            questions.map(|question| Example::of_question(manifest, question))
        });
        let mut examples = spread(&all.collect::<Vec<_>>(), QUESTIONS);
        if self.has_pictures {
            // A model that takes no images refuses the first picture.
            let size = Example::picture(0).size(model);
            let tokens = size.map_or(usize::MAX, |size| size.tokens.max(1));
            if tokens <= model.language().context_length() / 2 {
                let count = (PICTURE_TOKENS / tokens).clamp(1, PICTURES);
                examples.extend((0..count as u64).map(Example::picture));
            }
        }
        examples
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
            let chosen = spread(&all, most).into_iter();
            windows.extend(chosen.map(|ids| begin.iter().chain(ids).copied().collect::<Vec<_>>()));
        }
        Ok(windows)
    }
}

/// Returns at most `count` values at equal distances.
pub(crate) fn spread<T: Clone>(values: &[T], count: usize) -> Vec<T> {
    let count = count.min(values.len());
    let chosen = (0..count).map(|i| values[i * values.len() / count].clone());
    chosen.collect()
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
