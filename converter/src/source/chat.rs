//! The chat template of a Hugging Face checkpoint, which may be in one of three files.

use std::path::Path;

use serde_json::Value;

use super::error::{Result, malformed};
use super::file::SourceFile;
use super::json::{read_json, read_text};

/// Reads the chat template from `chat_template.jinja`, else from `chat_template.json`, else from
/// `tokenizer_config.json`: the order that transformers uses.
pub(super) fn read(
    directory: &Path,
    tokenizer_config: Option<&Value>,
    files: &mut Vec<SourceFile>,
) -> Result<Option<String>> {
    if let Some(text) = read_text(&directory.join("chat_template.jinja"), files)? {
        return Ok(Some(text));
    }
    let path = directory.join("chat_template.json");
    if let Some(json) = read_json(&path, files)?
        && let Some(template) = template_in(&json, &path.display().to_string())?
    {
        return Ok(Some(template));
    }
    let path = directory.join("tokenizer_config.json");
    match tokenizer_config {
        Some(json) => template_in(json, &path.display().to_string()),
        None => Ok(None),
    }
}

/// Returns `chat_template` of a JSON file: a string, or the `default` entry of a `{name, template}`
/// list.
fn template_in(json: &Value, file: &str) -> Result<Option<String>> {
    match json.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template"))
            .and_then(Value::as_str)
            .map(|template| Some(template.to_owned()))
            .ok_or_else(|| {
                malformed(
                    file,
                    "a list of chat templates without one named default",
                    "a template named default",
                )
            }),
        Some(_) => Err(malformed(
            file,
            "a chat_template that is neither text nor a list",
            "a Jinja template",
        )),
    }
}
