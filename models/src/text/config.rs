//! Configuration of the language model shared by Llama, Qwen2, Phi-3 and the multimodal models
//! based on them.

use edge_lmm_ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ModelError;
use crate::preprocess::settings::without_nulls;
use crate::text::decoder::{
    DecoderConfig, DecoderNorms, Projections, RotaryKind, ScaledRotary, SlidingWindow,
};
use crate::text::rope_fields::{self, RopeFields};
use crate::text::rotary::{DEFAULT_KIND, RotaryContext, RotaryScaling, scaling_kind};

/// Kinds of language models, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// Llama (Touvron et al. 2023).
    Llama,
    /// Qwen2 (Yang et al. 2024): queries, keys and values have a bias.
    Qwen2,
    /// Qwen2 inside Qwen2-VL and Qwen2.5-VL: positions have time, height and width (M-RoPE).
    QwenVl,
    /// Phi-3 (Abdin et al. 2024): fused projections.
    Phi3,
    /// Qwen3 (Yang et al. 2025): normalized queries and keys, no biases.
    Qwen3,
    /// Qwen3 inside Qwen3-VL: positions have time, height and width, whose frequencies take turns.
    Qwen3Vl,
    /// Gemma 3 (Gemma Team 2025): normalized queries and keys, two norms around each part of a
    /// layer, and a sliding window with rotary frequencies of its own in most layers.
    Gemma3,
}

impl TextKind {
    /// Returns the kind named by a configuration.
    ///
    /// # Errors
    /// If the kind is not supported.
    pub fn parse(model_type: &str) -> Result<Self, ModelError> {
        match model_type {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "phi3" => Ok(Self::Phi3),
            "qwen3" => Ok(Self::Qwen3),
            "gemma3_text" => Ok(Self::Gemma3),
            other => Err(ModelError::config(format!(
                "the language model is of type {other:?}, expected llama, qwen2, qwen3, \
                 phi3 or gemma3_text"
            ))),
        }
    }

    /// Returns the defaults of the reference's configuration class, which files may omit.
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
                "sliding_window": 4096, "max_window_layers": 28,
            }),
            Self::QwenVl => json!({
                "vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 29_568,
                "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
                "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
                "sliding_window": 4096, "max_window_layers": 80,
            }),
            Self::Phi3 => json!({
                "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192,
                "num_hidden_layers": 32, "num_attention_heads": 32,
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            }),
            Self::Qwen3 => json!({
                "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "head_dim": 128, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
                "sliding_window": 4096, "max_window_layers": 28,
            }),
            Self::Qwen3Vl => json!({
                "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "head_dim": 128, "max_position_embeddings": 128_000, "rms_norm_eps": 1e-6,
            }),
            Self::Gemma3 => json!({
                "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
                "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
                "head_dim": 256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
                "query_pre_attn_scalar": 256, "sliding_window": 4096,
                "tie_word_embeddings": true,
            }),
        }
    }

    /// Returns how checkpoints of this kind store projections.
    pub fn projections(self) -> Projections {
        match self {
            Self::Phi3 => Projections::Fused,
            _ => Projections::Split,
        }
    }

    fn default_theta(self) -> f64 {
        match self {
            Self::QwenVl | Self::Gemma3 => 1e6,
            Self::Qwen3Vl => 5e6,
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Phi3 => 1e4,
        }
    }

    /// Returns the field of the activation in the MLP, and its expected name.
    fn activation(self) -> (&'static str, &'static str, Activation) {
        match self {
            Self::Gemma3 => (
                "hidden_activation",
                "gelu_pytorch_tanh",
                Activation::GeluTanh,
            ),
            _ => ("hidden_act", "silu", Activation::Silu),
        }
    }

    /// Returns the original context length if the file does not state it.
    fn default_original(self) -> Option<usize> {
        (self == Self::Phi3).then_some(4096)
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
    rms_norm_eps: f64,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<Value>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    /// The same field in later versions of the reference.
    _sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
}

/// Reads a [`DecoderConfig`] from `config`, with the defaults of `kind`'s configuration class.
///
/// # Errors
/// If a field has the wrong type or a value that is not supported.
pub fn decoder_config(kind: TextKind, config: &Value) -> Result<DecoderConfig, ModelError> {
    let mut merged = kind.defaults();
    if config.get("num_key_value_heads") == Some(&Value::Null) {
        // The only null that does not mean the default: as many as attention heads.
        merged["num_key_value_heads"] = Value::Null;
    }
    let given = without_nulls(config);
    for (key, value) in given.as_object().into_iter().flatten() {
        merged[key.as_str()] = value.clone();
    }
    let (rope, local_theta) = match kind {
        TextKind::Gemma3 => rope_fields::by_layer(&given, kind.default_theta())?,
        _ => (RopeFields::read(&given, kind.default_theta())?, None),
    };
    let fields: Fields = serde_json::from_value(merged)
        .map_err(|error| ModelError::config(format!("config.json: {error}")))?;
    fields.check(kind)?;
    fields.decoder(kind, &rope, local_theta)
}

impl Fields {
    /// Rejects settings that are not supported.
    fn check(&self, kind: TextKind) -> Result<(), ModelError> {
        let (field, expected, _) = kind.activation();
        let activation = match field {
            "hidden_act" => &self.hidden_act,
            _ => &self.hidden_activation,
        };
        if let Some(act) = activation.as_deref().filter(|&act| act != expected) {
            return Err(ModelError::config(format!(
                "{field} is {act:?}, expected {expected:?}"
            )));
        }
        self.check_attention()?;
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
        let known = ["full_attention", "sliding_attention"];
        let mut layers = self.layer_types.iter().flatten();
        if let Some(other) = layers.find(|layer| !known.contains(&layer.as_str())) {
            return Err(ModelError::config(format!(
                "layer_types has {other:?}, expected \"full_attention\" or \"sliding_attention\""
            )));
        }
        Ok(())
    }

    /// Rejects kinds of attention that are not supported.
    fn check_attention(&self) -> Result<(), ModelError> {
        for (name, cap) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(cap) = cap {
                return Err(ModelError::config(format!(
                    "{name} is {cap}, expected null: soft caps are not supported"
                )));
            }
        }
        if let Some(scalar) = self.query_pre_attn_scalar
            && !(scalar.is_finite() && scalar > 0.0)
        {
            return Err(ModelError::config(format!(
                "query_pre_attn_scalar is {scalar}, expected a positive number"
            )));
        }
        match &self.use_bidirectional_attention {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(found) => Err(ModelError::config(format!(
                "use_bidirectional_attention is {found}, expected false: encoders of texts are \
                 not supported"
            ))),
        }
    }

    fn decoder(
        &self,
        kind: TextKind,
        rope: &RopeFields,
        local_theta: Option<f64>,
    ) -> Result<DecoderConfig, ModelError> {
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads.max(1));
        let is_gemma = kind == TextKind::Gemma3;
        let scaled_by = self.query_pre_attn_scalar.filter(|_| is_gemma);
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            intermediate_size: self.intermediate_size,
            vocabulary: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            norms: match is_gemma {
                true => DecoderNorms::ZeroCenteredSandwich,
                false => DecoderNorms::Pre,
            },
            activation: kind.activation().2,
            embedding_scale: match is_gemma {
                true => (self.hidden_size as f32).sqrt(),
                false => 1.0,
            },
            attention_scale: scaled_by.unwrap_or(head_dim as f64).powf(-0.5) as f32,
            rope_theta: rope.theta,
            rotary: match kind {
                TextKind::QwenVl => RotaryKind::Sections(sections(rope, None)?),
                TextKind::Qwen3Vl => {
                    RotaryKind::InterleavedSections(sections(rope, Some([24, 20, 20]))?)
                }
                _ => RotaryKind::Scaled(self.rotary(kind, rope, head_dim)?),
            },
            qkv_bias: matches!(kind, TextKind::Qwen2 | TextKind::QwenVl),
            qk_norm: matches!(kind, TextKind::Gemma3 | TextKind::Qwen3 | TextKind::Qwen3Vl),
            tied: self.tie_word_embeddings.unwrap_or(false),
            context_length: self.max_position_embeddings,
            sliding_window: self.sliding_window(kind, local_theta),
        })
    }

    fn rotary(
        &self,
        kind: TextKind,
        rope: &RopeFields,
        head_dim: usize,
    ) -> Result<ScaledRotary, ModelError> {
        let share = rope.share;
        // Matches Python's int(), which rounds towards zero.
        let dim = (head_dim as f64 * share) as usize;
        if share > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
            return Err(ModelError::config(format!(
                "partial_rotary_factor {share} leaves {dim} of {head_dim} elements of a head to \
                 rotate, expected an even number of them"
            )));
        }
        let context = RotaryContext {
            dim,
            positions: self.max_position_embeddings,
            original: rope.original.or(kind.default_original()),
        };
        Ok(ScaledRotary {
            dim,
            scaling: RotaryScaling::parse(rope.scaling.as_ref(), context)?,
        })
    }

    /// Returns the window of the layers whose attention slides, unless it is as long as the context
    /// and makes no difference.
    fn sliding_window(&self, kind: TextKind, local_theta: Option<f64>) -> Option<SlidingWindow> {
        let size = self.sliding_window?;
        let layers: Vec<bool> = match kind {
            TextKind::Llama | TextKind::Qwen3Vl => return None,
            TextKind::Phi3 => vec![true; self.num_hidden_layers],
            TextKind::Qwen2 | TextKind::QwenVl | TextKind::Qwen3 => {
                if !self.use_sliding_window.unwrap_or(false) {
                    return None;
                }
                let first = self.max_window_layers.unwrap_or(0);
                self.sliding_layers(|layer| layer >= first)
            }
            TextKind::Gemma3 => {
                let period = self.sliding_window_pattern.or(self._sliding_window_pattern);
                let period = period.unwrap_or(6).max(1);
                self.sliding_layers(|layer| !(layer + 1).is_multiple_of(period))
            }
        };
        let matters = size < self.max_position_embeddings || local_theta.is_some();
        let matters = matters && layers.contains(&true);
        matters.then_some(SlidingWindow {
            size,
            layers,
            rope_theta: local_theta,
        })
    }

    /// Returns for each layer whether it slides: as `layer_types` says, otherwise by `default`.
    fn sliding_layers(&self, default: impl Fn(usize) -> bool) -> Vec<bool> {
        let slides = |layer: usize| match &self.layer_types {
            Some(types) => types
                .get(layer)
                .is_some_and(|kind| kind == "sliding_attention"),
            None => default(layer),
        };
        (0..self.num_hidden_layers).map(slides).collect()
    }
}

/// Returns the numbers of frequencies for time, height and width, or `default` if the file does not
/// say them.
pub(crate) fn sections(
    rope: &RopeFields,
    default: Option<[usize; 3]>,
) -> Result<[usize; 3], ModelError> {
    let scaling = rope.scaling.as_ref().unwrap_or(&Value::Null);
    let kind = scaling_kind(scaling)?;
    if kind != DEFAULT_KIND {
        return Err(ModelError::config(format!(
            "rope_scaling of type {kind:?} is not supported together with mrope_section, \
             expected \"default\" or \"mrope\""
        )));
    }
    if rope.share != 1.0 {
        return Err(ModelError::config(format!(
            "partial_rotary_factor is {}, expected 1 together with mrope_section",
            rope.share
        )));
    }
    if let (None, Some(default)) = (&rope.sections, default) {
        return Ok(default);
    }
    let sections = rope.sections.clone().unwrap_or_default();
    serde_json::from_value(sections.clone()).map_err(|_| {
        ModelError::config(format!(
            "mrope_section is {sections}, expected three sizes: time, height and width"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of `llava-hf/llava-1.5-7b-hf` contains little more than this.
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
            (
                json!({"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4}}),
                "ntk",
            ),
            (json!({"layer_types": ["chunked_attention"]}), "chunked"),
        ] {
            let error = decoder_config(TextKind::Llama, &config).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    /// The language model of Qwen2-VL 72B as saved by `transformers` 5, which omits values that
    /// equal the defaults of the class.
    #[test]
    fn defaults_are_those_of_the_class() {
        let config = json!({"rope_parameters": {
            "rope_type": "default", "type": "mrope", "mrope_section": [16, 24, 24],
        }});
        let decoder = decoder_config(TextKind::QwenVl, &config).unwrap();
        assert_eq!((decoder.hidden_size, decoder.layers), (8192, 80));
        assert_eq!((decoder.heads, decoder.kv_heads), (64, 8));
        assert_eq!((decoder.vocabulary, decoder.rope_theta), (152_064, 1e6));
        assert_eq!(decoder.rms_norm_eps, 1e-5);
        let decoder = decoder_config(TextKind::Qwen2, &json!({})).unwrap();
        assert_eq!((decoder.kv_heads, decoder.rope_theta), (32, 1e4));
        let all = json!({"num_attention_heads": 64, "num_key_value_heads": null});
        let decoder = decoder_config(TextKind::Qwen2, &all).unwrap();
        assert_eq!(decoder.kv_heads, 64);
    }

    #[test]
    fn both_layouts_of_rotary_embeddings_say_the_same() {
        let factors = json!([1.0, 2.0, 3.0]);
        let old = json!({
            "head_dim": 16, "partial_rotary_factor": 0.375, "rope_theta": 5.0,
            "original_max_position_embeddings": 42,
            "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
        });
        let new = json!({"head_dim": 16, "rope_parameters": {
            "rope_type": "longrope", "type": "su", "partial_rotary_factor": 0.375,
            "rope_theta": 5.0, "original_max_position_embeddings": 42,
            "short_factor": factors, "long_factor": factors,
        }});
        let read = |config| decoder_config(TextKind::Phi3, &config).unwrap();
        let decoder = read(old);
        assert_eq!(decoder, read(new));
        let RotaryKind::Scaled(rotary) = decoder.rotary else {
            panic!("{:?}", decoder.rotary);
        };
        assert_eq!(rotary.dim, 6);
    }

    #[test]
    fn sections_go_with_no_scaling() {
        for (rope, word) in [
            (json!({"type": "default", "rope_type": "yarn"}), "\"yarn\""),
            (
                json!({"type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}),
                "\"yarn\"",
            ),
            (json!({"type": "mrope"}), "mrope_section is null"),
            (json!({"type": "mrope", "mrope_section": [1, 2]}), "[1,2]"),
            (
                json!({"mrope_section": [16, 24, 24], "partial_rotary_factor": 0.5}),
                "partial_rotary_factor",
            ),
        ] {
            let config = json!({"rope_scaling": rope});
            let error = decoder_config(TextKind::QwenVl, &config).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn both_layouts_of_gemma_say_the_same() {
        let old = json!({
            "num_hidden_layers": 7, "query_pre_attn_scalar": 168, "sliding_window": 200_000,
            "rope_theta": 5e5, "rope_local_base_freq": 1e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        });
        let sliding = |layer: &usize| layer % 6 != 5;
        let kind = |layer| match sliding(&layer) {
            true => "sliding_attention",
            false => "full_attention",
        };
        let new = json!({
            "num_hidden_layers": 7, "query_pre_attn_scalar": 168, "sliding_window": 200_000,
            "layer_types": (0..7).map(kind).collect::<Vec<_>>(),
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        });
        let read = |config| decoder_config(TextKind::Gemma3, &config).unwrap();
        let decoder = read(old);
        assert_eq!(decoder, read(new));
        assert_eq!((decoder.head_dim, decoder.tied), (256, true));
        assert_eq!(decoder.attention_scale, 168f32.powf(-0.5));
        assert_eq!(decoder.embedding_scale, 48.0);
        // The window is longer than the context, but its layers have their own frequencies.
        let window = decoder.sliding_window.expect("a window");
        assert_eq!(window.rope_theta, Some(1e3));
        assert!((0..7).all(|layer| window.layers[layer] == sliding(&layer)));
        let RotaryKind::Scaled(rotary) = decoder.rotary else {
            panic!("{:?}", decoder.rotary);
        };
        assert_eq!(rotary.scaling, RotaryScaling::Linear(8.0));
    }

    #[test]
    fn settings_of_gemma_that_are_not_supported_are_named() {
        for (config, name) in [
            (json!({"hidden_activation": "gelu"}), "hidden_activation"),
            (
                json!({"attn_logit_softcapping": 50.0}),
                "attn_logit_softcapping",
            ),
            (
                json!({"final_logit_softcapping": 30.0}),
                "final_logit_softcapping",
            ),
            (json!({"query_pre_attn_scalar": 0}), "query_pre_attn_scalar"),
            (
                json!({"use_bidirectional_attention": true}),
                "use_bidirectional_attention",
            ),
            (
                json!({"rope_parameters": {"sliding_attention":
                    {"rope_type": "linear", "factor": 2.0}}}),
                "sliding_attention",
            ),
        ] {
            let error = decoder_config(TextKind::Gemma3, &config).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn sections_that_overflow_are_refused() {
        let config = json!({"rope_scaling": {"mrope_section": [16, 24, u64::MAX]}});
        let decoder = decoder_config(TextKind::QwenVl, &config).unwrap();
        let error = decoder.check().unwrap_err().to_string();
        assert!(error.contains("mrope_section"), "{error}");
    }

    #[test]
    fn the_named_layers_have_the_window() {
        let layers = |kind, config: Value| {
            let decoder = decoder_config(kind, &config).unwrap();
            let window = decoder.sliding_window?;
            assert_eq!(window.size, 100);
            Some(window.layers)
        };
        let config = json!({"sliding_window": 100, "num_hidden_layers": 2});
        assert_eq!(layers(TextKind::Phi3, config.clone()), Some(vec![true; 2]));
        assert_eq!(layers(TextKind::Qwen2, config), None);
        let sliding = |key: &str, value: Value| {
            layers(
                TextKind::Qwen2,
                json!({"sliding_window": 100, "use_sliding_window": true,
                "num_hidden_layers": 2, key: value}),
            )
        };
        for (key, value, expected) in [
            ("max_window_layers", json!(1), Some(vec![false, true])),
            ("max_window_layers", json!(2), None),
            (
                "layer_types",
                json!(["full_attention", "full_attention"]),
                None,
            ),
            (
                "layer_types",
                json!(["sliding_attention", "full_attention"]),
                Some(vec![true, false]),
            ),
            ("max_position_embeddings", json!(100), None),
        ] {
            assert_eq!(sliding(key, value), expected);
        }
    }
}
