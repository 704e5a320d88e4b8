//! Comparison of records with a reference: how much a candidate's predictions differ from those of
//! the same model with more exact weights, and what it saves.
//!
//! Both models predict the next token at the same positions of the same text. A window of the text
//! is processed on its own, and its second half is scored, so that every scored token has at least
//! half a window of context, as in llama.cpp's `llama-perplexity`.

mod divergence;
mod page;
mod questions;
mod report;
mod run;
#[cfg(test)]
mod schema;
mod scorer;
mod size;
mod windows;

pub(crate) use divergence::Distribution;
pub use divergence::Divergence;
pub use page::page;
pub use questions::answer;
pub use report::{
    Answers, ComparisonReport, FORMAT, ModelReport, Predictions, QuestionsReport, TextReport,
    VERSION,
};
pub use run::{CompareError, predict};
pub use scorer::Scorer;
pub use size::Size;
pub use windows::{Windows, WindowsError};
