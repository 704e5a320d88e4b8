//! Qwen3 (Yang et al. 2025, <https://arxiv.org/abs/2505.09388>): as Qwen2, with normalized queries and
//! keys in place of biases. The reference is `modeling_qwen3.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen3-0.6B -o qwen3-0.6b.bpk
//! edge-lmm run qwen3-0.6b.bpk --prompt "Why is the sky blue?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::text_model::TextModel as Qwen3;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen3",
    title: "Qwen3",
    parts: &[],
};
