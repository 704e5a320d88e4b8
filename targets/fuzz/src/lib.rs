//! Fuzz targets for everything that reads files or requests.
//!
//! A [`Target`] is a function that accepts any bytes and checks that the parser meets its
//! requirements, with initial inputs. `tests/mutations.rs` and `tests/desk.rs` run each target for some
//! seconds with a stable compiler; the programs in `fuzz_targets` run them with libFuzzer for any length of time.

mod cache;
mod chat;
mod checkpoint;
mod command;
mod config;
mod constraint;
mod data;
#[cfg(feature = "desk")]
mod desk;
mod errors;
mod http_connection;
mod http_request;
#[cfg(feature = "libfuzzer")]
pub mod libfuzzer;
mod manifest;
mod media;
mod memory_file;
pub mod mutate;
pub mod panics;
mod prompt;
mod quantized;
mod record;
mod request;
mod results;
mod statistics;
mod tool_calls;

use mutate::Form;

/// A parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the program in `fuzz_targets`.
    pub name: &'static str,
    /// Form of its input.
    pub form: Form,
    /// Valid inputs, from which others are derived.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parses an input.
    ///
    /// # Panics
    /// If the parser violates a requirement.
    pub run: fn(&[u8]),
}

/// The targets of the library, the converter, and the commands of all builds.
pub const TARGETS: &[Target] = &[
    media::IMAGE,
    media::ANIMATION,
    media::Y4M,
    media::MP4,
    media::SOUND,
    prompt::TOKENIZER_JSON,
    prompt::CHAT_TEMPLATE,
    prompt::CONTROL_TOKENS,
    request::REQUEST,
    http_request::HTTP_REQUEST,
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
    checkpoint::ADAPTER,
    cache::CACHE_ENTRY,
    http_connection::HTTP_CONNECTION,
    command::WEB_ADDRESS,
    constraint::CONSTRAINT,
    tool_calls::TOOL_CALLS,
    command::SERVER_OPTIONS,
    command::PROFILES,
    results::RESULTS,
    quantized::QUANTIZED,
    statistics::STATISTICS,
];

/// The targets of commands for workstations.
#[cfg(feature = "desk")]
pub const DESK_TARGETS: &[Target] = &[desk::HUB_FILES, desk::DATASET];
#[cfg(not(feature = "desk"))]
const DESK_TARGETS: &[Target] = &[];

/// Returns the target with this name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    let mut targets = TARGETS.iter().chain(DESK_TARGETS);
    let target = targets.find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("there is no target {name}"))
}
