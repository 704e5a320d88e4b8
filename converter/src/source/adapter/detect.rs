//! Detection of adapters (LoRA and similar), which change a model and are not models themselves.
//!
//! File and tensor names: PEFT (`peft/utils/constants.py`, `peft/tuners`), and trainers with their
//! own LoRA files.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::super::Tensor;
use super::super::error::{Result, SourceError};
use super::super::json::read_json;
use super::{CONFIG, WEIGHTS};

/// Files that hold an adapter.
const FILES: [&str; 7] = [
    CONFIG,
    WEIGHTS,
    "adapter_model.bin",
    "adapter_model.pt",
    "pytorch_adapter.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
];
/// Prefixes of tensor name components that occur only in adapters and models with unmerged
/// adapters.
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
/// Advice for an adapter.
const ADVICE: &str = "the base model, with a LoRA adapter of PEFT as --adapter FOLDER; adapters of other \
                      kinds can be merged before, with merge_and_unload() and save_pretrained() of peft";
/// Advice for a model that contains an adapter.
const UNMERGED: &str = "the merged model: load it with peft, call merge_and_unload() and \
                        save_pretrained(), and convert that folder";

/// Rejects a folder that holds an adapter, alone or beside its base model: `transformers` would
/// load both. If the path names a weight file, an adapter beside it only causes a warning.
pub(in super::super) fn check_files(path: &Path) -> Result<()> {
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
        true => format!("{ADVICE}; move the adapter to a folder of its own"),
        false => ADVICE.to_owned(),
    };
    Err(SourceError::NotACheckpoint {
        path: path.to_path_buf(),
        found,
        expected,
    })
}

/// Describes the adapter in a folder that contains `file`, with its kind and base model if known.
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

/// Rejects weights that are an adapter or contain an unmerged one.
pub(in super::super) fn check_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    match tensors.keys().find(|name| is_adapter(name)) {
        None => Ok(()),
        Some(name) => Err(SourceError::NotACheckpoint {
            path: path.to_path_buf(),
            found: format!("an unmerged adapter (LoRA or similar) with tensor {name}"),
            expected: UNMERGED.into(),
        }),
    }
}

/// Returns `true` if a component of a tensor name belongs to an adapter.
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
