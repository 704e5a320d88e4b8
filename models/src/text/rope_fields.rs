//! Fields of a configuration about rotary embeddings, in both layouts. Older files have
//! `rope_theta`, `rope_scaling` and `partial_rotary_factor` at the same level, files of
//! `transformers` 5 have all of them in `rope_parameters`. The reference is
//! `RotaryEmbeddingConfigMixin` in `modeling_rope_utils.py`.

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::text::rotary::{DEFAULT_KIND, scaling_kind};

/// The fields about rotary embeddings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeFields {
    /// Base of the frequencies; positive.
    pub theta: f64,
    /// Fraction of a head that is rotated.
    pub share: f64,
    /// Original context length.
    pub original: Option<usize>,
    /// Sizes of the sections for time, height and width, as in the file.
    pub sections: Option<Value>,
    /// The `rope_scaling`, or `rope_parameters` without it.
    pub scaling: Option<Value>,
}

impl RopeFields {
    /// Reads the fields of `config`, which has no nulls.
    ///
    /// # Errors
    /// If a field has the wrong type, or layers of different kinds have different parameters.
    pub fn read(config: &Value, default_theta: f64) -> Result<Self, ModelError> {
        let parameters = parameters(config)?;
        let inside = |key: &str| parameters.and_then(|inner| inner.get(key));
        let either = |key: &str| positive(key, inside(key).or_else(|| config.get(key)));
        // Phi-3 has this field at the top level, which the reference prefers.
        let original = "original_max_position_embeddings";
        let original = positive(original, config.get(original).or_else(|| inside(original)))?;
        Ok(Self {
            theta: either("rope_theta")?.unwrap_or(default_theta),
            share: either("partial_rotary_factor")?.unwrap_or(1.0),
            original: original.map(|positions| positions as usize),
            sections: inside("mrope_section").cloned(),
            scaling: parameters.map(|inner| Value::Object(inner.clone())),
        })
    }
}

/// Reads the fields of a model with full and sliding attention, whose layers have parameters of
/// their own, as in Gemma 3: those of full attention, and the base of the frequencies of layers with
/// a sliding window, which are not scaled.
///
/// # Errors
/// As [`RopeFields::read`], or if the frequencies of sliding attention are scaled.
pub(crate) fn by_layer(
    config: &Value,
    default_theta: f64,
) -> Result<(RopeFields, Option<f64>), ModelError> {
    const DEFAULT_LOCAL_THETA: f64 = 1e4;
    let kind = |name: &str| {
        let parameters = config.get("rope_parameters")?.get(name)?;
        parameters.is_object().then(|| parameters.clone())
    };
    let [full, sliding] = ["full_attention", "sliding_attention"].map(kind);
    if full.is_none() && sliding.is_none() {
        let fields = RopeFields::read(config, default_theta)?;
        let key = "rope_local_base_freq";
        let local = positive(key, config.get(key))?.unwrap_or(DEFAULT_LOCAL_THETA);
        return Ok((fields, Some(local)));
    }
    let read = |parameters: Option<Value>, theta| match parameters {
        Some(parameters) => RopeFields::read(&json!({"rope_parameters": parameters}), theta),
        None => RopeFields::read(&json!({}), theta),
    };
    let sliding = read(sliding, DEFAULT_LOCAL_THETA)?;
    let kind = scaling_kind(sliding.scaling.as_ref().unwrap_or(&Value::Null))?;
    if kind != DEFAULT_KIND {
        return Err(ModelError::config(format!(
            "rope_parameters.sliding_attention is of type {kind:?}, expected {DEFAULT_KIND:?}"
        )));
    }
    Ok((read(full, default_theta)?, Some(sliding.theta)))
}

/// Returns `rope_scaling` unless it is empty, else `rope_parameters`.
fn parameters(config: &Value) -> Result<Option<&Map<String, Value>>, ModelError> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = config.get(key) else {
            continue;
        };
        let Value::Object(members) = value else {
            return Err(ModelError::config(format!(
                "{key} is {value}, expected an object with a \"rope_type\""
            )));
        };
        let kinds: Vec<&str> = (members.iter())
            .filter(|(_, member)| member.is_object())
            .map(|(kind, _)| kind.as_str())
            .collect();
        if !kinds.is_empty() {
            return Err(ModelError::config(format!(
                "{key} has separate parameters for each kind of layer ({}); only models whose \
                 layers share them are supported",
                kinds.join(", ")
            )));
        }
        if !members.is_empty() {
            return Ok(Some(members));
        }
    }
    Ok(None)
}

fn positive(key: &str, found: Option<&Value>) -> Result<Option<f64>, ModelError> {
    let Some(found) = found else {
        return Ok(None);
    };
    match found.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
        _ => Err(ModelError::config(format!(
            "{key} is {found}, expected a positive number"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: Value) -> Result<RopeFields, ModelError> {
        RopeFields::read(&config, 1e4)
    }

    #[test]
    fn both_layouts_say_the_same() {
        let old = json!({
            "rope_theta": 5e5, "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        });
        let new = json!({"rope_parameters": {
            "rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        }});
        let (old, new) = (read(old).unwrap(), read(new).unwrap());
        assert_eq!(
            (old.theta, old.share, old.original),
            (new.theta, new.share, new.original)
        );
        assert_eq!((old.theta, old.share, old.original), (5e5, 0.5, Some(64)));
    }

    /// As in the reference: `rope_scaling` before `rope_parameters`, inner fields before outer
    /// ones, empty objects ignored.
    #[test]
    fn the_order_is_that_of_the_reference() {
        let fields = read(json!({
            "rope_theta": 1.0, "rope_scaling": {},
            "rope_parameters": {"rope_type": "default", "rope_theta": 2.0},
        }));
        assert_eq!(fields.unwrap().theta, 2.0);
        let fields = read(json!({
            "rope_theta": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 2.0},
        }));
        let fields = fields.unwrap();
        assert_eq!(fields.theta, 1.0);
        assert_eq!(fields.scaling.unwrap()["type"], "linear");
        assert_eq!(read(json!({})).unwrap().theta, 1e4);
    }

    #[test]
    fn parameters_by_kind_of_layer_are_named() {
        let nested = json!({"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }});
        let error = read(nested).unwrap_err().to_string();
        assert!(
            error.contains("full_attention, sliding_attention"),
            "{error}"
        );
        for (config, word) in [
            (json!({"rope_scaling": "linear"}), "rope_scaling"),
            (json!({"rope_theta": "high"}), "rope_theta"),
            (json!({"rope_parameters": {"rope_theta": -1}}), "rope_theta"),
        ] {
            let error = read(config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
