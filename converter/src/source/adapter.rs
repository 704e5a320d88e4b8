//! Adapters (LoRA and its kin), which are changes to a model and no model themselves.
//!
//! File and tensor names: PEFT (`peft/utils/constants.py`, `peft/tuners`), and the trainers that
//! write LoRA files of their own.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Tensor;
use super::error::{Result, SourceError};
use super::json::read_json;

/// The description that PEFT writes beside an adapter.
const CONFIG: &str = "adapter_config.json";
/// Files that hold an adapter.
const FILES: [&str; 7] = [
    CONFIG,
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_model.pt",
    "pytorch_adapter.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
];
/// Parts of tensor names that only an adapter, or a model with one that is not merged, has.
const TENSORS: [&str; 22] = [
    "base_layer",
    "modules_to_save",
    "original_module",
    "lora_",
    "ia3_l",
    "hada_w",
    "lokr_w",
    "vera_lambda",
    "oft_",
    "boft_",
    "fourierft_",
    "randlora_",
    "hra_u",
    "ln_tuning_layers",
    "poly_lora",
    "prompt_embeddings",
    "adaption_prompt",
    "internal_xlora",
    "shira_weight",
    "bone_",
    "miss_block",
    "trainable_tokens_",
];
/// The advice for a PEFT adapter.
const ADVICE: &str = "the merged model: load the base model and the adapter with peft, call \
                      merge_and_unload() and save_pretrained(), and convert that folder";

/// Refuses a folder that holds an adapter, alone or beside its base model, which `transformers`
/// would load with it. A weight file that was named itself is taken alone.
pub(super) fn check_files(path: &Path) -> Result<()> {
    let directory = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(Path::new(""))
    };
    let Some(file) = FILES.iter().find(|file| directory.join(file).exists()) else {
        return Ok(());
    };
    let is_adapter = path.is_dir()
        || path
            .file_name()
            .is_some_and(|name| FILES.iter().any(|file| name == *file));
    let found = describe(directory, file);
    if !is_adapter {
        log::warn!(
            "{}: the folder holds {found}; it is not applied",
            path.display()
        );
        return Ok(());
    }
    let has_base = path.is_dir()
        && ["model.safetensors", "model.safetensors.index.json"]
            .iter()
            .any(|file| directory.join(file).exists());
    let expected = match has_base {
        true => format!("{ADVICE}; to convert the base model alone, move the adapter away"),
        false => ADVICE.to_owned(),
    };
    Err(SourceError::NotACheckpoint {
        path: path.to_path_buf(),
        found,
        expected,
    })
}

/// The adapter of a folder that has `file` in it, with its kind and base model where they are known.
fn describe(directory: &Path, file: &str) -> String {
    let config = read_json(&directory.join(CONFIG), &mut Vec::new());
    let config = config.ok().flatten().unwrap_or_default();
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let kind = match text("peft_type") {
        Some(kind) => format!("a {kind} adapter"),
        None => "an adapter (LoRA or similar)".to_owned(),
    };
    match text("base_model_name_or_path") {
        Some(base) => format!("{kind} for {base} ({file})"),
        None => format!("{kind} ({file})"),
    }
}

/// Refuses weights that are an adapter or hold one that is not merged.
pub(super) fn check_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    match tensors.keys().find(|name| is_adapter(name)) {
        None => Ok(()),
        Some(name) => Err(SourceError::NotACheckpoint {
            path: path.to_path_buf(),
            found: format!("an adapter (LoRA or similar) that is not merged, with tensor {name}"),
            expected: ADVICE.into(),
        }),
    }
}

/// Returns `true` if a part of a tensor's name is that of an adapter.
fn is_adapter(name: &str) -> bool {
    name.starts_with("base_model.model.")
        || name
            .split('.')
            .any(|part| TENSORS.iter().any(|start| part.starts_with(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_told_by_their_tensors() {
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "model.layers.0.self_attn.q_proj.base_layer.weight",
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            "lm_head.modules_to_save.default.weight",
            "model.embed_tokens.lora_embedding_A",
            "unet.down.lora_down.weight",
            "prompt_embeddings",
        ] {
            assert!(is_adapter(name), "{name}");
        }
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "visual.blocks.0.attn.qkv.bias",
            "language_projection.weight",
            "qformer.encoder.layer.0.crossattention.attention.query.weight",
        ] {
            assert!(!is_adapter(name), "{name}");
        }
    }
}
