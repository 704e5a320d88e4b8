//! The language model's part of a configuration, as Llama, Qwen2, Phi-3 and the multimodal models
//! around them have it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::decoder::{DecoderConfig, RotaryKind, ScaledRotary};
use crate::error::ModelError;
use crate::rotary::{RotaryContext, RotaryScaling};

/// Kinds of language models, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// Llama (Touvron et al. 2023).
    Llama,
    /// Qwen2 (Yang et al. 2024): queries, keys and values have a bias.
    Qwen2,
    /// Phi-3 (Abdin et al. 2024): fused projections.
    Phi3,
}

impl TextKind {
    /// The kind that a configuration names.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn parse(model_type: &str) -> Result<Self, ModelError> {
        match model_type {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "phi3" => Ok(Self::Phi3),
            other => Err(ModelError::config(format!(
                "the language model is of type {other:?}, expected llama, qwen2 or phi3"
            ))),
        }
    }

    /// What the reference assumes where a configuration says nothing.
    fn defaults(self) -> Value {
        match self {
            Self::Llama => json!({
                "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
                "num_hidden_layers": 32, "num_attention_heads": 32,
                "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            }),
            Self::Qwen2 => json!({
                "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
            }),
            Self::Phi3 => json!({
                "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192,
                "num_hidden_layers": 32, "num_attention_heads": 32,
                "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            }),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Fields {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files have both of the above in here.
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
}

/// Reads a [`DecoderConfig`] from the fields of `config`.
///
/// # Errors
/// If fields are of the wrong type or ask for something that is not supported.
pub fn decoder_config(kind: TextKind, config: &Value) -> Result<DecoderConfig, ModelError> {
    let mut merged = kind.defaults();
    let given = config.as_object().into_iter().flatten();
    for (key, value) in given.filter(|(_, value)| !value.is_null()) {
        merged[key.as_str()] = value.clone();
    }
    let fields: Fields = serde_json::from_value(merged)
        .map_err(|error| ModelError::config(format!("config.json: {error}")))?;
    fields.check()?;
    fields.decoder(kind)
}

impl Fields {
    /// Refuses what would be computed wrongly.
    fn check(&self) -> Result<(), ModelError> {
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(ModelError::config(format!(
                "hidden_act is {act:?}, expected \"silu\""
            )));
        }
        for (name, bias) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ] {
            if bias == Some(true) {
                return Err(ModelError::config(format!(
                    "{name} is true, expected false: such models are not supported"
                )));
            }
        }
        Ok(())
    }

    fn decoder(&self, kind: TextKind) -> Result<DecoderConfig, ModelError> {
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads.max(1));
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            intermediate_size: self.intermediate_size,
            vocabulary: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta()?,
            rotary: RotaryKind::Scaled(self.rotary(head_dim)?),
            qkv_bias: kind == TextKind::Qwen2,
            tied: self.tie_word_embeddings.unwrap_or(false),
            context_length: self.context_length(kind),
        })
    }

    fn rope_theta(&self) -> Result<f64, ModelError> {
        let newer = self.rope_parameters.as_ref();
        let newer = newer.and_then(|rope| rope.get("rope_theta")?.as_f64());
        let theta = self.rope_theta.or(newer).unwrap_or(10_000.0);
        if theta.is_finite() && theta > 0.0 {
            return Ok(theta);
        }
        Err(ModelError::config(format!(
            "rope_theta is {theta}, expected a positive number"
        )))
    }

    fn rotary(&self, head_dim: usize) -> Result<ScaledRotary, ModelError> {
        let share = self.partial_rotary_factor.unwrap_or(1.0);
        // As Python's int(): towards zero.
        let dim = (head_dim as f64 * share) as usize;
        if !(share > 0.0 && share <= 1.0) || dim == 0 || !dim.is_multiple_of(2) {
            return Err(ModelError::config(format!(
                "partial_rotary_factor {share} leaves {dim} of {head_dim} elements of a head to \
                 rotate, expected an even number of them"
            )));
        }
        let context = RotaryContext {
            dim,
            positions: self.max_position_embeddings,
            original: self.original_max_position_embeddings,
        };
        let scaling = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        Ok(ScaledRotary {
            dim,
            scaling: RotaryScaling::parse(scaling, context)?,
        })
    }

    /// Up to here every token sees all tokens before it, which is all that is supported: a
    /// sliding window ends the context.
    fn context_length(&self, kind: TextKind) -> usize {
        let used = match kind {
            TextKind::Llama => false,
            TextKind::Qwen2 => self.use_sliding_window.unwrap_or(false),
            TextKind::Phi3 => true,
        };
        match self.sliding_window {
            Some(window) if used && window < self.max_position_embeddings => {
                log::warn!(
                    "sliding windows are not supported; the context ends at the window's {window} \
                     tokens instead of {}",
                    self.max_position_embeddings
                );
                window
            }
            _ => self.max_position_embeddings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of `llava-hf/llava-1.5-7b-hf` says little more than this.
    #[test]
    fn a_short_configuration_gets_the_sizes_of_llama() {
        let config = json!({"vocab_size": 32_064, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "head_dim": null});
        let decoder = decoder_config(TextKind::Llama, &config).unwrap();
        assert_eq!((decoder.hidden_size, decoder.layers), (4096, 32));
        assert_eq!((decoder.kv_heads, decoder.head_dim), (32, 128));
        assert_eq!(decoder.rope_theta, 10_000.0);
        assert_eq!(decoder.rms_norm_eps, 1e-5);
        decoder.check().unwrap();
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        for (config, name) in [
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (
                json!({"partial_rotary_factor": 0.0}),
                "partial_rotary_factor",
            ),
            (json!({"rope_theta": -1.0}), "rope_theta"),
            (
                json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
                "dynamic",
            ),
        ] {
            let error = decoder_config(TextKind::Llama, &config).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_sliding_window_ends_the_context() {
        let config = json!({"sliding_window": 100});
        let context = |kind| decoder_config(kind, &config).unwrap().context_length;
        assert_eq!(context(TextKind::Phi3), 100);
        assert_eq!(context(TextKind::Qwen2), 32_768);
    }
}
