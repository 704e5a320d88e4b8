//! The tokenizer of a Hugging Face checkpoint.

use std::path::Path;
use std::str::FromStr;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::{Result, SourceError, malformed};
use super::file::SourceFile;
use super::hub::text_number;
use super::json::read_text;

/// Reads `tokenizer.json`.
pub(super) fn read(
    directory: &Path,
    _tokenizer_config: Option<&Value>,
    files: &mut Vec<SourceFile>,
) -> Result<String> {
    let path = directory.join("tokenizer.json");
    read_text(&path, files)?.ok_or_else(|| SourceError::MissingFile {
        path,
        needed_for: "it turns text into tokens; download the whole checkpoint".into(),
    })
}

/// Checks that a `tokenizer.json` loads and that the model has an embedding for every token of it.
pub(super) fn check(tokenizer: &str, config: &Value, file: &str) -> Result<()> {
    let parsed = Tokenizer::from_str(tokenizer).map_err(|e| {
        malformed(
            file,
            format!("a tokenizer that does not load ({e})"),
            "a tokenizer.json of Hugging Face tokenizers",
        )
    })?;
    let largest = parsed.get_vocab(true).into_values().max().unwrap_or(0);
    match text_number(config, "vocab_size") {
        Some(vocab_size) if u64::from(largest) >= vocab_size => Err(SourceError::Vocabulary {
            file: file.into(),
            largest,
            vocab_size,
        }),
        _ => Ok(()),
    }
}
