//! Reduction of the tokens of media.

pub mod language;

pub use language::LanguageReduction;
