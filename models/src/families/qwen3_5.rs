//! Qwen3.5 (Qwen Team 2026): the vision tower of Qwen3-VL without features for deeper layers, and a
//! language model of gated delta rules and gated attention. The reference is `modeling_qwen3_5.py` of
//! `transformers`. The layer that predicts further tokens (`mtp`) drafts them.
//!
//! ```text
//! edge-lmm-convert Qwen3.5-0.8B -o qwen3.5-0.8b.bpk
//! edge-lmm run qwen3.5-0.8b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::families::qwen_vl_input::Variant;
use crate::families::qwen3_vl::{TowerText, VisionLanguage};
use crate::family::FamilyInfo;
use crate::text::qwen3_5::{Qwen35Text, Qwen35TextConfig};
use crate::weights::Scope;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen3_5",
    title: "Qwen3.5",
    parts: &[
        ("vision_config", &["qwen3_5", "qwen3_5_vision"]),
        ("text_config", &["qwen3_5_text"]),
    ],
};

/// The model.
pub type Qwen35<B> = VisionLanguage<B, Qwen35Text<B>>;

impl<B: KernelBackend> TowerText<B> for Qwen35Text<B> {
    type Config = Qwen35TextConfig;
    const INNER_BLOCKS: &'static [usize] = &[];
    const MEDIA_TOKENS: [u32; 2] = [248_056, 248_057];
    const VARIANT: Variant = Variant::QWEN3_5;

    fn config(config: &Value) -> Result<(Qwen35TextConfig, [usize; 2]), ModelError> {
        let config = Qwen35TextConfig::parse(config)?;
        let sizes = [config.hidden_size, config.attention.len()];
        Ok((config, sizes))
    }

    fn declare(config: Qwen35TextConfig, root: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        Self::init(config, "model.language_model", root)
    }
}
