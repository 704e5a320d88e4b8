//! Reduction of visual tokens: an encoder and a language model spend most of their time on tokens
//! that say little.
//!
//! [`Reductions`] is the chain of methods of a request, each at its place in the computation:
//!
//! | place | methods | file |
//! |---|---|---|
//! | before the encoder | equal neighbors, also in time | [`duplicates`] |
//! | within the encoder | merging of similar tokens | [`merge`] |
//! | after the projector | diversity, attention, random, stride | [`mod@select`] |
//! | after the projector | diversity and relevance to the question | [`question`] |
//! | within the language model | attention of the last token of the prompt | [`language`] |
//!
//! A *unit* is the part of an image that becomes one token: a merge group of patches in
//! Qwen2-VL, a patch in LLaVA. The first two places drop and merge whole units. Tokens that are
//! left keep their positions. [`anchors`] protects some of them from the last two places.
//!
//! [`EncoderSize`] counts units and tokens before an encoder runs, and [`choice`] has the chains that
//! a time limit chooses from.

pub mod anchors;
pub mod choice;
mod determinant;
pub mod diverse;
pub mod duplicates;
pub mod language;
pub mod merge;
mod plan;
pub mod question;
pub(crate) mod rows;
pub mod sampling;
mod schedule;
pub mod select;
mod share;

pub use anchors::Anchors;
pub use language::LanguageReduction;
pub use merge::Merge;
pub use plan::{Reduction, ReductionError, ReductionStep, Reductions};
pub use schedule::{EncoderSize, Schedule};
pub use share::Share;
