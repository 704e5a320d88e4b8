//! Metadata that would change what a model computes and that no family here knows: named instead
//! of ignored. Names: `gguf-py/gguf/constants.py` of llama.cpp.

use super::super::error::{Result, SourceError};
use super::header::Header;
use super::value::Value;

/// Numbers of a language model with the values that change nothing.
const NUMBERS: [(&str, &[f64]); 9] = [
    ("expert_count", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
];

/// Flags of a language model with the value that changes nothing.
const FLAGS: [(&str, bool); 2] = [("attention.causal", true), ("use_parallel_residual", false)];

/// Checks the metadata of architecture `arch`.
///
/// # Errors
/// If they ask for something that is not supported.
pub(super) fn check(header: &Header<'_>, arch: &str) -> Result<()> {
    for (name, neutral) in NUMBERS {
        let key = format!("{arch}.{name}");
        if let Some(found) = header
            .number(&key)?
            .filter(|found| !neutral.contains(found))
        {
            return Err(error(header, key, found.to_string(), "none"));
        }
    }
    for (name, neutral) in FLAGS {
        let key = format!("{arch}.{name}");
        if let Some(found) = header.flag(&key)?.filter(|found| *found != neutral) {
            return Err(error(header, key, found.to_string(), &neutral.to_string()));
        }
    }
    let window = format!("{arch}.attention.sliding_window");
    if arch != "phi3" && header.metadata.get(&*window).is_some_and(is_some_window) {
        log::warn!("{window} is ignored, as llama.cpp does for this architecture");
    }
    Ok(())
}

fn is_some_window(value: &Value<'_>) -> bool {
    !matches!(value, Value::Integer(0))
}

fn error(header: &Header<'_>, what: String, found: String, supported: &str) -> SourceError {
    SourceError::Unsupported {
        file: header.file.clone(),
        what,
        found,
        supported: supported.into(),
    }
}
