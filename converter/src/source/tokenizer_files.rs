//! The tokenizer of a Hugging Face checkpoint.

use std::collections::HashSet;
use std::path::Path;
use std::str::FromStr;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::added_tokens::{Additions, special_text};
use super::error::{Result, SourceError, malformed};
use super::file::SourceFile;
use super::json::{read_json, read_text};
use super::tokenizer_json::{Bpe, GPT2, QWEN2, Splitter, byte_level};

/// Reads `tokenizer.json`, or builds it from the files of the slow tokenizers, `vocab.json` and
/// `merges.txt`. In both cases, adds the tokens of the other files.
pub(super) fn read(
    directory: &Path,
    config: &Value,
    tokenizer_config: Option<&Value>,
    files: &mut Vec<SourceFile>,
) -> Result<String> {
    let path = directory.join("tokenizer.json");
    let text = read_text(&path, files)?;
    let additions = Additions::read(directory, tokenizer_config, files)?;
    if let Some(text) = text {
        return additions.extend(without_batching(text), text_number(config, "vocab_size"));
    }
    let vocab = read_json(&directory.join("vocab.json"), files)?;
    let merges = read_text(&directory.join("merges.txt"), files)?;
    if let (Some(vocab), Some(merges)) = (vocab, merges) {
        let config = tokenizer_config.ok_or_else(|| SourceError::MissingFile {
            path: directory.join("tokenizer_config.json"),
            needed_for: "vocab.json and merges.txt do not define the pre-tokenizer; download it"
                .into(),
        })?;
        return rebuild(directory, &vocab, &merges, config, &additions);
    }
    let needed_for = if directory.join("tokenizer.model").exists() {
        "a SentencePiece tokenizer.model alone is not supported; create tokenizer.json with \
         AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...) of transformers"
    } else {
        "it turns text into tokens; download the whole checkpoint"
    };
    Err(SourceError::MissingFile {
        path,
        needed_for: needed_for.into(),
    })
}

/// Removes truncation and padding from a `tokenizer.json`. They are left over from training, and
/// `transformers` resets them on every call. A text that does not parse is returned unchanged and
/// left to [`check`].
fn without_batching(text: String) -> String {
    let Ok(mut tokenizer) = serde_json::from_str::<Value>(&text) else {
        return text;
    };
    let mut changed = false;
    for key in ["truncation", "padding"] {
        if let Some(value) = tokenizer.get_mut(key).filter(|value| !value.is_null()) {
            log::debug!("tokenizer.json: ignoring {key} {value}");
            *value = Value::Null;
            changed = true;
        }
    }
    match changed {
        true => tokenizer.to_string(),
        false => text,
    }
}

/// Checks that a `tokenizer.json` loads and that the model has an embedding for each of its tokens.
/// Returns the tokenizer.
pub(super) fn check(tokenizer: &str, config: &Value, file: &str) -> Result<Tokenizer> {
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
        _ => Ok(parsed),
    }
}

/// Adds the `bos_token_id` of the tokenizer to a config without one: chat templates begin with this
/// token, and `transformers` leaves out values that are the defaults of their class.
pub(super) fn complete(
    config: &mut Value,
    tokenizer_config: Option<&Value>,
    tokenizer: &Tokenizer,
) {
    const KEY: &str = "bos_token_id";
    if text_number(config, KEY).is_some() {
        return;
    }
    let token = tokenizer_config.and_then(|config| config.get("bos_token"));
    let id = token
        .and_then(special_text)
        .and_then(|text| tokenizer.token_to_id(text));
    if let (Some(id), Some(fields)) = (id, config.as_object_mut()) {
        fields.insert(KEY.into(), id.into());
    }
}

/// Builds a byte-level BPE tokenizer from its slow files.
fn rebuild(
    directory: &Path,
    vocab: &Value,
    merges: &str,
    config: &Value,
    additions: &Additions,
) -> Result<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    let splitter = splitter(config, &file("tokenizer_config.json"))?;
    let base = vocabulary(vocab, &file("vocab.json"))?;
    let added = additions.known(&base);
    let merges = merge_pairs(merges, &file("merges.txt"))?;
    let known: HashSet<&str> = base.iter().map(|&(token, _)| token).collect();
    let missing = added
        .iter()
        .filter(|token| !known.contains(&*token.content));
    let missing = missing.map(|token| (&*token.content, token.id));
    let vocab: Vec<(&str, u32)> = base.iter().copied().chain(missing).collect();
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let begin = config.get("bos_token").and_then(special_text);
    let begin = begin.filter(|_| flag("add_bos_token"));
    let begin = begin.and_then(|text| vocab.iter().copied().find(|&(token, _)| token == text));
    let bpe = Bpe {
        vocab,
        merges,
        added: added.clone(),
        begin,
        end: None,
    };
    Ok(byte_level(&bpe, splitter, flag("add_prefix_space")))
}

/// Returns the pre-tokenizer of the config's tokenizer class.
fn splitter(config: &Value, file: &str) -> Result<Splitter> {
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    match class.map(|class| class.trim_end_matches("Fast")) {
        Some("Qwen2Tokenizer") => Ok(QWEN2),
        Some("GPT2Tokenizer") => Ok(GPT2),
        other => Err(SourceError::Unsupported {
            file: file.into(),
            what: "tokenizer_class".into(),
            found: other.unwrap_or("(none)").into(),
            supported: "Qwen2Tokenizer, GPT2Tokenizer without a tokenizer.json; any class with one"
                .into(),
        }),
    }
}

/// Parses the tokens of `vocab.json`.
fn vocabulary<'a>(vocab: &'a Value, file: &str) -> Result<Vec<(&'a str, u32)>> {
    let entries = vocab.as_object().into_iter().flatten();
    entries
        .map(|(token, id)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| {
                malformed(
                    file,
                    format!("the id {id} of {token:?}"),
                    "an unsigned 32-bit integer",
                )
            })?;
            Ok((token.as_str(), number))
        })
        .collect()
}

/// Parses the pairs of `merges.txt`, one per line after an optional version line.
fn merge_pairs<'a>(merges: &'a str, file: &str) -> Result<Vec<(&'a str, &'a str)>> {
    merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(|line| {
            line.split_once(' ').ok_or_else(|| {
                malformed(
                    file,
                    format!("the line {line:?}"),
                    "two tokens with a space between",
                )
            })
        })
        .collect()
}

/// Returns a number of a config or of its `text_config`, where multimodal configs keep that of the
/// text model.
fn text_number(config: &Value, key: &str) -> Option<u64> {
    let number = |section: &Value| section.get(key).and_then(Value::as_u64);
    number(config).or_else(|| number(config.get("text_config")?))
}
