//! The language model of the Qwen2 families as their `config.json` describes it.

use serde::Deserialize;
use serde_json::Value;

use crate::decoder::{DecoderConfig, RotaryKind};
use crate::error::ModelError;

/// Fields of the language model; the defaults are those of the reference's `Qwen2Config`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct QwenTextConfig {
    #[serde(default = "default_hidden")]
    pub hidden_size: usize,
    #[serde(default = "default_intermediate")]
    intermediate_size: usize,
    #[serde(default = "default_layers")]
    num_hidden_layers: usize,
    #[serde(default = "default_heads")]
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
}

fn default_hidden() -> usize {
    4096
}

fn default_intermediate() -> usize {
    22_016
}

fn default_layers() -> usize {
    32
}

fn default_heads() -> usize {
    32
}

fn default_context() -> usize {
    32_768
}

fn default_eps() -> f64 {
    1e-6
}

/// Files have `type`, `rope_type` or both; newer ones keep `rope_theta` here, too.
#[derive(Debug, Clone, Deserialize)]
struct RopeScaling {
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_type: Option<String>,
    mrope_section: Option<Vec<usize>>,
    rope_theta: Option<f64>,
}

/// `config.json` with the fields of its `text_config`, where newer files keep the language
/// model's, at the top, where older ones have them.
pub(crate) fn flattened(config: &Value) -> Value {
    let mut flat = config.clone();
    if let (Some(Value::Object(text)), Value::Object(flat)) = (config.get("text_config"), &mut flat)
    {
        for (key, value) in text {
            flat.insert(key.clone(), value.clone());
        }
    }
    flat
}

impl QwenTextConfig {
    /// A decoder with one position per token.
    ///
    /// # Errors
    /// If the configuration asks for something that is not supported.
    pub fn plain(&self) -> Result<DecoderConfig, ModelError> {
        self.decoder(RotaryKind::Plain, 1e4)
    }

    /// A decoder with positions in time, height and width (M-RoPE).
    ///
    /// # Errors
    /// If the configuration has no three sections, or as [`Self::plain`].
    pub fn multimodal(&self) -> Result<DecoderConfig, ModelError> {
        let sections = self.rope().and_then(|rope| rope.mrope_section.as_deref());
        let sections: [usize; 3] = sections.unwrap_or_default().try_into().map_err(|_| {
            ModelError::config(format!(
                "mrope_section is {sections:?}, expected three sizes: time, height and width"
            ))
        })?;
        self.decoder(RotaryKind::Sections(sections), 1e6)
    }

    fn rope(&self) -> Option<&RopeScaling> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    fn check(&self) -> Result<(), ModelError> {
        let types = self.rope().into_iter();
        let types = types.flat_map(|rope| [&rope.old_type, &rope.rope_type]);
        if let Some(found) = types
            .flatten()
            .find(|t| !["mrope", "default"].contains(&t.as_str()))
        {
            return Err(ModelError::config(format!(
                "rope_scaling of type {found:?} is not supported, expected \"default\" or \
                 \"mrope\""
            )));
        }
        if self.use_sliding_window {
            return Err(ModelError::config(
                "use_sliding_window is true: attention over a sliding window is not supported",
            ));
        }
        match self.hidden_act.as_deref() {
            None | Some("silu") => Ok(()),
            Some(found) => Err(ModelError::config(format!(
                "hidden_act is {found:?}, expected \"silu\""
            ))),
        }
    }

    fn decoder(&self, rotary: RotaryKind, default_theta: f64) -> Result<DecoderConfig, ModelError> {
        self.check()?;
        let heads = self.num_attention_heads;
        let theta = self
            .rope_theta
            .or(self.rope().and_then(|rope| rope.rope_theta));
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            intermediate_size: self.intermediate_size,
            vocabulary: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: theta.unwrap_or(default_theta),
            rotary,
            qkv_bias: true,
            tied: self.tie_word_embeddings,
            context_length: self.max_position_embeddings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value) -> QwenTextConfig {
        serde_json::from_value(flattened(&config)).unwrap()
    }

    #[test]
    fn both_layouts_say_the_same() {
        let text = json!({
            "hidden_size": 24, "num_attention_heads": 2, "vocab_size": 7,
            "rope_theta": 5.0, "rope_scaling": { "type": "mrope", "mrope_section": [1, 2, 3] },
        });
        let nested = json!({ "vocab_size": 9, "text_config": text });
        let flat = parse(text).multimodal().unwrap();
        assert_eq!(parse(nested).multimodal().unwrap(), flat);
        assert_eq!(flat.head_dim, 12);
        assert_eq!(flat.rotary, RotaryKind::Sections([1, 2, 3]));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let yarn = json!({
            "vocab_size": 7, "rope_scaling": { "type": "default", "rope_type": "yarn" },
        });
        let error = parse(yarn).plain().unwrap_err().to_string();
        assert!(error.contains("\"yarn\""), "{error}");
        let sliding = json!({ "vocab_size": 7, "use_sliding_window": true });
        let error = parse(sliding).plain().unwrap_err().to_string();
        assert!(error.contains("sliding"), "{error}");
    }
}
