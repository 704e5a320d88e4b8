//! Gemma 3 without images: the 270M and 1B models (Gemma Team 2025,
//! <https://arxiv.org/abs/2503.19786>). As Llama, with normalized queries and keys, norms before and
//! after attention and MLP, scaled embeddings, GELU, and in five of six layers a sliding window with
//! rotary frequencies of its own. The reference is `modeling_gemma3.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert gemma-3-270m-it -o gemma3-270m.bpk
//! edge-lmm run gemma3-270m.bpk --prompt "Why is the sky blue?"
//! ```

use crate::family::FamilyInfo;

pub use crate::families::text_model::TextModel as Gemma3Text;

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "gemma3_text",
    title: "Gemma 3",
    parts: &[],
};
