//! Language models and their rotary embeddings.

pub mod config;
pub mod decoder;
pub mod lfm2;
pub mod opt;
pub mod qwen3_5;
mod rope_fields;
pub mod rotary;
pub(crate) mod step;
pub mod t5;
