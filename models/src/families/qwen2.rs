//! Qwen2 and Qwen2.5 (Yang et al. 2024, <https://arxiv.org/abs/2407.10671>): as Llama, with biases
//! on queries, keys and values. The reference is `modeling_qwen2.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2.5-0.5B-Instruct -o qwen2-0.5b.bpk
//! edge-lmm run qwen2-0.5b.bpk --prompt "Why is the sky blue?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::text_model::TextModel as Qwen2;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2",
    title: "Qwen2",
    parts: &[],
};
