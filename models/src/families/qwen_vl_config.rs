//! The configuration of Qwen2-VL and Qwen2.5-VL around their vision towers.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config_file::{flattened, parse_config};
use crate::error::ModelError;
use crate::families::qwen_vl_input::MediaTokens;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::DecoderConfig;

/// `config.json`; `V` is the part of the vision tower.
#[derive(Debug, Clone)]
pub(crate) struct QwenVlConfig<V> {
    /// The language model.
    pub text: DecoderConfig,
    /// The vision tower.
    pub vision: V,
    /// The tokens that stand for media.
    pub tokens: MediaTokens,
}

#[derive(Deserialize)]
struct Sections<V> {
    #[serde(default)]
    vision_config: V,
    #[serde(flatten)]
    tokens: MediaTokens,
}

impl<V: DeserializeOwned + Default> QwenVlConfig<V> {
    /// Reads `config.json` of either layout; the tower is not checked.
    ///
    /// # Errors
    /// If a member is of the wrong type or the language model is not supported.
    pub fn parse(kind: TextKind, config: &Value) -> Result<Self, ModelError> {
        let flat = flattened(config);
        let text = decoder_config(kind, &flat)?;
        let sections: Sections<V> = parse_config(&flat)?;
        Ok(Self {
            text,
            vision: sections.vision_config,
            tokens: sections.tokens,
        })
    }
}
