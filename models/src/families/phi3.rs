//! Phi-3 and Phi-3.5 (Abdin et al. 2024, <https://arxiv.org/abs/2404.14219>): as Llama, with fused
//! projections, and for the long variants LongRoPE (Ding et al. 2024,
//! <https://arxiv.org/abs/2402.13753>). The reference is `modeling_phi3.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Phi-3.5-mini-instruct -o phi3-mini.bpk
//! edge-lmm run phi3-mini.bpk --prompt "Why is the sky blue?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::text_model::TextModel as Phi3;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "phi3",
    title: "Phi-3",
    parts: &[],
};
