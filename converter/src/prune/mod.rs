//! Structured pruning: what is left out makes the record smaller and the model faster.

mod measure;
mod prompts;
mod search;
mod structure;
mod token_ids;
mod tokenizer;
mod vocabulary;

pub use measure::Importance;
pub use search::{Shares, Trial, prune_shares, search};
pub(crate) use structure::restore_channels;
pub use structure::{prune_channels, prune_heads, prune_layers, prune_vision_layers};
pub use vocabulary::prune_vocabulary;
