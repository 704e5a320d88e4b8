//! Reading the JSON files of a checkpoint as `transformers` reads them.

use edge_lmm_preprocess::settings::without_nulls;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ModelError;

/// Reads `config.json`; nulls count as missing.
///
/// # Errors
/// If a member is missing or of the wrong type.
pub(crate) fn parse_config<T: DeserializeOwned>(config: &Value) -> Result<T, ModelError> {
    serde_json::from_value(without_nulls(config))
        .map_err(|error| ModelError::config(format!("config.json: {error}")))
}

/// Reads the section `name` of `config.json`, as [`parse_config`].
///
/// # Errors
/// As [`parse_config`].
pub(crate) fn parse_section<T: DeserializeOwned>(
    name: &str,
    section: &Value,
) -> Result<T, ModelError> {
    serde_json::from_value(without_nulls(section))
        .map_err(|error| ModelError::config(format!("config.json: {name}: {error}")))
}

/// Returns the configuration of a multimodal model with the members of its `text_config` at the top
/// level, where older files have them. A null in
/// `text_config` does not hide a member of the top level.
pub(crate) fn flattened(config: &Value) -> Value {
    let mut flat = config.clone();
    let (Some(Value::Object(text)), Value::Object(members)) =
        (config.get("text_config"), &mut flat)
    else {
        return flat;
    };
    let says = |key: &str| text.get(key).is_some_and(|value| !value.is_null());
    // The older and the newer name of the same member must not meet.
    if says("rope_parameters") || says("rope_scaling") {
        members.remove("rope_parameters");
        members.remove("rope_scaling");
    }
    for (key, value) in text {
        if says(key) || !members.contains_key(key) {
            members.insert(key.clone(), value.clone());
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_section_overrides_the_top_level_but_its_nulls_do_not() {
        let flat = flattened(&json!({
            "image_token_id": 5, "hidden_size": 1, "rope_scaling": {"type": "mrope"},
            "text_config": {
                "image_token_id": null, "hidden_size": 2, "rope_parameters": {"rope_theta": 3.0}
            },
        }));
        assert_eq!(flat["image_token_id"], 5);
        assert_eq!(flat["hidden_size"], 2);
        assert_eq!(flat["rope_parameters"]["rope_theta"], 3.0);
        assert!(flat.get("rope_scaling").is_none());
        let old = json!({"hidden_size": 1, "text_config": null});
        assert_eq!(flattened(&old), old);
    }
}
