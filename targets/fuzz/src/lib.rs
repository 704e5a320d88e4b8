//! Fuzz targets of everything that reads files or requests.
//!
//! A [`Target`] is a function that takes any bytes and checks that the parser keeps its promises,
//! with inputs to begin with. `tests/mutations.rs` runs each target for some seconds with a stable
//! compiler; the programs in `fuzz_targets` run them for as long as wanted with libFuzzer.

mod chat;
mod checkpoint;
mod config;
mod data;
mod errors;
#[cfg(feature = "libfuzzer")]
pub mod libfuzzer;
mod manifest;
mod media;
mod memory_file;
pub mod mutate;
pub mod panics;
mod prompt;
mod record;
mod request;

use mutate::Form;

/// A parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the program in `fuzz_targets`.
    pub name: &'static str,
    /// What its input looks like.
    pub form: Form,
    /// Sound inputs, from which the others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input.
    ///
    /// # Panics
    /// If the parser breaks a promise.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    media::IMAGE,
    media::ANIMATION,
    media::Y4M,
    media::SOUND,
    prompt::TOKENIZER_JSON,
    prompt::CHAT_TEMPLATE,
    prompt::CONTROL_TOKENS,
    request::REQUEST,
    chat::CHAT_LINE,
    manifest::MANIFEST,
    config::MODEL_CONFIG,
    config::GENERATION_CONFIG,
    record::RECORD,
    record::BUNDLE,
    checkpoint::CHECKPOINT_FILES,
    checkpoint::GGUF_HEADER,
    checkpoint::GGUF_MODEL,
    checkpoint::GGUF_VOCABULARY,
    checkpoint::SAFETENSORS,
];

/// The target of that name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("there is no target {name}"))
}
