//! Rejection of tokenizers that could inflate a text without bound or fail on every text.

use serde::Serialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::guard;

/// Maximum growth of a text by a normalizer or decoder. SentencePiece's space grows by a factor of
/// 3.
const MAX_GROWTH: usize = 256;

/// Maximum id. Published vocabularies have up to 300,000 tokens.
const MAX_ID: u32 = 1 << 24;

/// Checks the ids of a tokenizer, its normalizer, pre-tokenizer, decoder and post-processor.
///
/// # Errors
/// A message that names the component and the reason.
pub(crate) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let normalizer = steps(&tokenizer.get_normalizer())?;
    let decoder = steps(&tokenizer.get_decoder())?;
    for (name, steps) in [("normalizer", normalizer), ("decoder", decoder)] {
        let mut growth = 1usize;
        for step in &steps {
            growth = growth.saturating_mul(step_growth(name, step)?);
        }
        if growth > MAX_GROWTH {
            return Err(format!(
                "its {name} can make a text {growth} times longer, at most {MAX_GROWTH} times is \
                 supported"
            ));
        }
    }
    for step in steps(&tokenizer.get_pre_tokenizer())? {
        if step["type"] == "FixedLength" && step["length"] == 0 {
            return Err("its pre_tokenizer splits into pieces of length 0".to_owned());
        }
    }
    check_ids(tokenizer)?;
    check_edges(tokenizer)
}

/// Checks the largest id, because tables by id have an entry for every id up to it.
fn check_ids(tokenizer: &Tokenizer) -> Result<(), String> {
    match tokenizer.get_vocab(true).into_values().max() {
        Some(largest) if largest > MAX_ID => Err(format!(
            "it has a token with the id {largest}, at most {MAX_ID} is supported"
        )),
        _ => Ok(()),
    }
}

/// Checks the tokens that the post-processor adds, whose ids are not taken from the vocabulary.
fn check_edges(tokenizer: &Tokenizer) -> Result<(), String> {
    let edges = guard::catch(|| tokenizer.encode_fast("", true))?;
    // A tokenizer that fails on an empty text may still encode others.
    let ids = edges
        .map(|edges| edges.get_ids().to_vec())
        .unwrap_or_default();
    match ids.iter().find(|&&id| tokenizer.id_to_token(id).is_none()) {
        Some(id) => Err(format!(
            "its post_processor adds the id {id}, which its vocabulary lacks"
        )),
        None => Ok(()),
    }
}

/// Returns the steps of a component, with sequences flattened.
fn steps(part: &impl Serialize) -> Result<Vec<Value>, String> {
    let part = serde_json::to_value(part).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    let mut left = vec![part];
    while let Some(step) = left.pop() {
        let inner = ["normalizers", "pretokenizers", "decoders"]
            .iter()
            .find_map(|key| step.get(key))
            .and_then(Value::as_array);
        match inner {
            Some(inner) => left.extend(inner.iter().cloned()),
            None => found.push(step),
        }
    }
    Ok(found)
}

fn step_growth(part: &str, step: &Value) -> Result<usize, String> {
    if step["type"] != "Replace" {
        return Ok(1);
    }
    let content = step["content"].as_str().map_or(0, str::len);
    let pattern = &step["pattern"];
    match pattern.get("String").and_then(Value::as_str) {
        Some("") => Err(format!("its {part} replaces the empty text")),
        Some(pattern) => Ok(content.div_ceil(pattern.len()).max(1)),
        // An expression may match between any two characters.
        None => Ok(1 + content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer(part: &str, value: Value) -> Tokenizer {
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        });
        json[part] = value;
        json.to_string().parse().expect("a tokenizer")
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn growth_is_limited() {
        let doubling = replace(json!({"String": "a"}), "aa");
        for (part, steps, allowed) in [
            ("normalizer", vec![doubling.clone(); 8], true),
            ("normalizer", vec![doubling.clone(); 9], false),
            ("decoder", vec![doubling; 40], false),
            (
                "normalizer",
                vec![replace(json!({"Regex": ""}), "x"); 24],
                false,
            ),
            (
                "normalizer",
                vec![replace(json!({"String": " "}), "\u{2581}")],
                true,
            ),
            (
                "normalizer",
                vec![replace(json!({"String": ""}), "xx")],
                false,
            ),
        ] {
            let key = format!("{part}s");
            let sequence = json!({"type": "Sequence", key: steps});
            let checked = check(&tokenizer(part, sequence.clone()));
            assert_eq!(checked.is_ok(), allowed, "{sequence}: {checked:?}");
        }
    }

    #[test]
    fn pieces_have_a_length() {
        for (length, allowed) in [(0, false), (1, true)] {
            let value = json!({"type": "FixedLength", "length": length});
            assert_eq!(check(&tokenizer("pre_tokenizer", value)).is_ok(), allowed);
        }
    }

    #[test]
    fn ids_of_the_post_processor_are_in_the_vocabulary() {
        for (id, allowed) in [(0, true), (1, false), (u32::MAX, false)] {
            let value = json!({
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "a", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {"a": {"id": "a", "ids": [id], "tokens": ["a"]}},
            });
            let checked = check(&tokenizer("post_processor", value));
            assert_eq!(checked.is_ok(), allowed, "{id}: {checked:?}");
        }
    }

    #[test]
    fn ids_are_limited() {
        for (id, allowed) in [(MAX_ID, true), (MAX_ID + 1, false), (u32::MAX, false)] {
            let model = json!({"type": "WordLevel", "vocab": {"a": id}, "unk_token": "a"});
            assert_eq!(check(&tokenizer("model", model)).is_ok(), allowed, "{id}");
        }
    }
}
