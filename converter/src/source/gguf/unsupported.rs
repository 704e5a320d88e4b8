//! Detection of GGUF metadata that changes results and is not supported.
//!
//! Keys: `docs/gguf.md` of ggml, and `gguf-py/gguf/constants.py` of llama.cpp.

use super::super::error::{Result, SourceError, malformed, some_of};
use super::header::Header;
use super::value::{Value, shortest};

/// Keys after the architecture prefix that are read or do not affect the computation.
const KNOWN: [&str; 32] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "full_attention_interval",
    "n_deepstack_layers",
    "nextn_predict_layers",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    // Checked below.
    "attention.value_length",
    "attention.causal",
    // Sizes that the tensors imply, and remarks.
    "vocab_size",
    "tensor_data_layout",
];

/// Keys after the architecture prefix, each with the value that has no effect.
const NEUTRAL: [(&str, f64); 18] = [
    ("attention.clamp_kqv", 0.0),
    ("attention.layer_norm_epsilon", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.temperature_length", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_shared_count", 0.0),
    ("expert_used_count", 0.0),
    ("expert_weights_scale", 0.0),
    ("final_logit_softcapping", 0.0),
    ("leading_dense_block_count", 0.0),
    ("logit_scale", 1.0),
    ("pooling_type", 0.0),
    ("residual_scale", 1.0),
    ("use_parallel_residual", 0.0),
];

/// The factor of cosine and sine.
const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";

/// Keys of a vision tower after `clip.`, each with the value that has no effect.
const NEUTRAL_VISION: [(&str, f64); 1] = [("has_audio_encoder", 0.0)];

/// Those of towers other than Qwen2.5-VL's: windows of attention.
const WINDOWS: [(&str, f64); 3] = [
    ("vision.n_wa_pattern", 0.0),
    ("vision.wa_layer_indexes", 0.0),
    ("vision.window_size", 0.0),
];

/// Keys of the tokenizer after `tokenizer.ggml.`, each with the value that has no effect.
const NEUTRAL_TOKENIZER: [(&str, f64); 4] = [
    ("add_sep_token", 0.0),
    ("normalizer.lowercase", 0.0),
    ("remove_extra_whitespaces", 0.0),
    ("suppress_tokens", 0.0),
];

/// Rejects files that are not models: adapters, vocabularies, importance matrices.
pub(super) fn check_type(header: &Header<'_>) -> Result<()> {
    let kind = header.text("general.type")?;
    if kind == Some("adapter") || header.text("adapter.type")?.is_some() {
        return Err(malformed(
            &header.file,
            "a LoRA adapter",
            "a whole model; merge base model and adapter with llama-export-lora",
        ));
    }
    if let Some(kind @ ("vocab" | "imatrix")) = kind {
        return Err(malformed(
            &header.file,
            format!("a file of type {kind}, which is not a model"),
            "a language model",
        ));
    }
    Ok(())
}

/// Rejects metadata that would change the results of a language model, and warns about unknown
/// keys.
pub(super) fn check_text(header: &Header<'_>, arch: &str) -> Result<()> {
    let prefix = format!("{arch}.");
    check_neutral(header, &prefix, &NEUTRAL)?;
    check_neutral(header, "tokenizer.ggml.", &NEUTRAL_TOKENIZER)?;
    check_attention(header, arch)?;
    // The layers that take features of inner blocks.
    if arch != "qwen3vl" {
        check_neutral(header, &prefix, &[("n_deepstack_layers", 0.0)])?;
    }
    // Layers that predict further tokens.
    if arch != "qwen35" {
        check_neutral(header, &prefix, &[("nextn_predict_layers", 0.0)])?;
    }
    if arch == "lfm2" {
        check_neutral(header, &prefix, &[("attention.sliding_window", 0.0)])?;
    }
    // Phi-3's factor follows from its other parameters.
    if arch != "phi3" {
        check_neutral(header, &prefix, &[(ATTENTION_FACTOR, 1.0)])?;
    }
    let neutral =
        |rest: &str| rest == ATTENTION_FACTOR || NEUTRAL.iter().any(|(key, _)| *key == rest);
    let unknown: Vec<&str> = header
        .metadata
        .keys()
        .copied()
        .filter(|key| {
            key.strip_prefix(&*prefix)
                .is_some_and(|rest| !KNOWN.contains(&rest) && !neutral(rest))
        })
        .collect();
    if !unknown.is_empty() {
        log::warn!(
            "{}: ignoring unknown metadata, so answers may differ: {}",
            header.file,
            some_of(&unknown)
        );
    }
    Ok(())
}

/// Rejects head sizes that the attention does not support.
fn check_attention(header: &Header<'_>, arch: &str) -> Result<()> {
    let size = |name: &str| header.size(&format!("{arch}.{name}"));
    let default = match (size("embedding_length")?, size("attention.head_count")?) {
        (Some(width), Some(heads)) if heads > 0 => width / heads,
        _ => return Ok(()),
    };
    let head = size("attention.key_length")?.unwrap_or(default);
    let mut sizes = vec![("attention.value_length", size("attention.value_length")?)];
    // Phi-3 may rotate only a part of each head, Qwen3.5 does.
    if !["phi3", "qwen35"].contains(&arch) {
        sizes.push(("rope.dimension_count", size("rope.dimension_count")?));
    }
    for (name, found) in sizes {
        if let Some(found) = found
            && found != head
        {
            return Err(unsupported(
                header,
                &format!("{arch}.{name}"),
                &found.to_string(),
                &format!("{head}, the size of a head"),
            ));
        }
    }
    if header.flag(&format!("{arch}.attention.causal"))? == Some(false) {
        let key = format!("{arch}.attention.causal");
        return Err(unsupported(header, &key, "false", "true"));
    }
    Ok(())
}

/// Rejects metadata that would change the results of a vision tower.
pub(super) fn check_vision(header: &Header<'_>, projector: &str) -> Result<()> {
    check_neutral(header, "clip.", &NEUTRAL_VISION)?;
    if projector != "qwen2.5vl_merger" {
        check_neutral(header, "clip.", &WINDOWS)?;
    }
    if projector != "qwen3vl_merger" {
        check_neutral(header, "clip.", &[("vision.is_deepstack_layers", 0.0)])?;
    }
    if let Some(merge) = header.text("clip.vision.mm_patch_merge_type")?
        && merge != "flat"
    {
        let key = "clip.vision.mm_patch_merge_type";
        return Err(unsupported(header, key, merge, "flat, as LLaVA-1.5 has it"));
    }
    let pinpoints = "clip.vision.image_grid_pinpoints";
    match header.metadata.get(pinpoints) {
        Some(Value::Numbers(grid)) if grid.iter().len() > 0 => Err(unsupported(
            header,
            pinpoints,
            "images in tiles, as LLaVA-1.6 has them",
            "one tile, as LLaVA-1.5 has it",
        )),
        _ => Ok(()),
    }
}

/// Rejects keys whose value has an effect.
fn check_neutral(header: &Header<'_>, prefix: &str, keys: &[(&str, f64)]) -> Result<()> {
    for (name, neutral) in keys {
        let key = format!("{prefix}{name}");
        let Some(value) = header.metadata.get(&*key) else {
            continue;
        };
        let found = match value {
            Value::Integer(n) => *n as f64,
            Value::F32(x) => shortest(*x),
            Value::F64(x) => *x,
            Value::Bool(flag) => f64::from(u8::from(*flag)),
            Value::Numbers(numbers) if numbers.iter().len() == 0 => *neutral,
            // One value per layer, or per token.
            _ => f64::NAN,
        };
        if found != *neutral {
            let found = match found.is_nan() {
                true => value.kind().to_owned(),
                false => found.to_string(),
            };
            let expected = format!("{neutral}, or no such key");
            return Err(unsupported(header, &key, &found, &expected));
        }
    }
    Ok(())
}

fn unsupported(header: &Header<'_>, key: &str, found: &str, supported: &str) -> SourceError {
    SourceError::Unsupported {
        file: header.file.clone(),
        what: key.into(),
        found: found.into(),
        supported: supported.into(),
    }
}
