//! Llama (Touvron et al. 2023, <https://arxiv.org/abs/2302.13971>; Llama 3: Grattafiori et al.
//! 2024, <https://arxiv.org/abs/2407.21783>): grouped-query attention, rotary embeddings, a gated
//! MLP, no biases. The reference is `modeling_llama.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Llama-3.2-1B-Instruct -o llama-1b.bpk
//! edge-lmm run llama-1b.bpk --prompt "Why is the sky blue?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::text_model::TextModel as Llama;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "llama",
    title: "Llama",
    parts: &[],
};
