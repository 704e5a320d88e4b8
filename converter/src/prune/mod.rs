//! Structured pruning: what is left out makes the record smaller and the model faster.

mod prompts;
mod token_ids;
mod tokenizer;
mod vocabulary;

pub use vocabulary::prune_vocabulary;
