//! Token ids in the configuration of a checkpoint.

use serde_json::Value;

/// Keys of lists of ids whose names do not end as those of other ids do.
const LISTS: [&str; 2] = ["suppress_tokens", "begin_suppress_tokens"];

/// Returns the token ids that a configuration names, such as `eos_token_id` or `image_token_index`.
pub(super) fn named(config: &Value) -> Vec<u32> {
    let mut config = config.clone();
    let mut ids = Vec::new();
    visit(&mut config, &mut |id| {
        ids.extend(id.as_u64().and_then(|id| u32::try_from(id).ok()));
        true
    });
    ids
}

/// Replaces each id that `new` knows. Lists of suppressed tokens lose the others.
pub(super) fn replace(config: &mut Value, new: impl Fn(u32) -> Option<u32>) {
    visit(config, &mut |value| {
        let Some(id) = value.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return true;
        };
        match new(id) {
            Some(id) => {
                *value = id.into();
                true
            }
            None => false,
        }
    });
}

/// Calls `f` for every id; it returns `false` for an id that is not in the vocabulary.
fn visit(config: &mut Value, f: &mut impl FnMut(&mut Value) -> bool) {
    match config {
        Value::Object(fields) => {
            for (key, value) in fields {
                let is_id = ["_token_id", "_token_ids", "_token_index"]
                    .iter()
                    .any(|ending| key.ends_with(ending));
                match value {
                    Value::Array(ids) if LISTS.contains(&&**key) => ids.retain_mut(&mut *f),
                    Value::Array(ids) if is_id => ids.iter_mut().for_each(|id| {
                        f(id);
                    }),
                    Value::Number(_) if is_id => {
                        f(value);
                    }
                    other => visit(other, f),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| visit(value, f)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_found_and_replaced_at_every_depth() {
        let mut config = json!({
            "vocab_size": 10,
            "eos_token_id": [3, 5],
            "pad_token_id": null,
            "text_config": {"bos_token_id": 1, "hidden_size": 4},
            "image_token_index": 9,
            "suppress_tokens": [2, 3],
        });
        assert_eq!(named(&config), [3, 5, 1, 9, 2, 3]);
        replace(&mut config, |id| (id != 2).then_some(id + 100));
        let expected = json!({
            "vocab_size": 10,
            "eos_token_id": [103, 105],
            "pad_token_id": null,
            "text_config": {"bos_token_id": 101, "hidden_size": 4},
            "image_token_index": 109,
            "suppress_tokens": [103],
        });
        assert_eq!(config, expected);
    }
}
