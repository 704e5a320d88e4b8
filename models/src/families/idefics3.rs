//! Idefics3 (Laurençon et al. 2024, <https://arxiv.org/abs/2408.12637>) and the first SmolVLM: the
//! architecture of SmolVLM2, without videos. The reference is `modeling_idefics3.py` of
//! `transformers`.
//!
//! ```text
//! edge-lmm-convert SmolVLM-256M-Instruct -o smolvlm.bpk
//! edge-lmm run smolvlm.bpk --image cat.jpg --prompt "What is this?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::smolvlm::SmolVlm as Idefics3;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "idefics3",
    title: "SmolVLM",
    parts: &[
        (
            "vision_config",
            &["idefics3_vision", "idefics3", "siglip_vision_model"],
        ),
        ("text_config", &["llama"]),
    ],
};
