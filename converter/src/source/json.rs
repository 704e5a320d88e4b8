//! The JSON files of a checkpoint.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::error::{Result, malformed};
use super::file::SourceFile;
use super::map;

/// Maximum size of a JSON or text file. A tokenizer of a million tokens is smaller, a weight file
/// with a JSON name is larger.
const MAX_TEXT_BYTES: usize = 128 << 20;

/// Reads a text file and adds it to `files`. Returns `None` if it does not exist.
pub(super) fn read_text(path: &Path, files: &mut Vec<SourceFile>) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let map = map::open(path)?;
    let file = path.display().to_string();
    if map.len() > MAX_TEXT_BYTES {
        return Err(malformed(
            file,
            format!("{} bytes", map.len()),
            format!("a text file of at most {MAX_TEXT_BYTES} bytes"),
        ));
    }
    let text = std::str::from_utf8(&map)
        .map_err(|e| malformed(&file, e.to_string(), "UTF-8 text"))?
        .to_owned();
    files.push(SourceFile::new(path, Arc::new(map)));
    Ok(Some(text))
}

/// Reads a JSON object and adds its file to `files`. Returns `None` if it does not exist.
pub(super) fn read_json(path: &Path, files: &mut Vec<SourceFile>) -> Result<Option<Value>> {
    let Some(text) = read_text(path, files)? else {
        return Ok(None);
    };
    let file = path.display().to_string();
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| malformed(&file, format!("invalid json: {e}"), "a json object"))?;
    if !value.is_object() {
        return Err(malformed(
            &file,
            "json that is not an object",
            "a json object",
        ));
    }
    Ok(Some(value))
}
