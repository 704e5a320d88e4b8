//! Language models and their rotary embeddings.

pub(crate) mod config;
pub(crate) mod decoder;
pub(crate) mod opt;
mod rope_fields;
pub(crate) mod rotary;
pub(crate) mod t5;
