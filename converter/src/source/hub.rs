//! Checkpoints in the layout of the Hugging Face hub: JSON files and safetensors in one directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{Result, SourceError, some_of};
use super::file::SourceFile;
use super::file::file_name;
use super::json::read_json;
use super::processor::Processors;
use super::{Checkpoint, Tensor, adapter, chat, quantized, safetensors, tokenizer_files};

const INDEX: &str = "model.safetensors.index.json";

/// Opens a directory, or a single `.safetensors` file with the JSON files beside it.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    adapter::check_files(path)?;
    let mut files = Vec::new();
    let (directory, mut tensors) = if path.is_dir() {
        (path, read_directory(path, &mut files)?)
    } else {
        let directory = path.parent().unwrap_or(Path::new(""));
        (directory, read_single(path, directory, &mut files)?)
    };
    adapter::check_tensors(path, &tensors)?;
    let mut config = read_config(directory, &mut files)?;
    quantized::resolve(directory, &mut config, &mut tensors)?;
    read_others(directory, config, tensors, files)
}

/// Opens the JSON files of a directory. A description of quantized weights is ignored.
pub(super) fn open_without_weights(directory: &Path) -> Result<Checkpoint> {
    if !directory.is_dir() {
        return Err(SourceError::NotACheckpoint {
            path: directory.to_path_buf(),
            found: "a file, or nothing".into(),
            expected: "a Hugging Face directory with config.json and a tokenizer".into(),
        });
    }
    let mut files = Vec::new();
    let mut config = read_config(directory, &mut files)?;
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    read_others(directory, config, BTreeMap::new(), files)
}

fn read_config(directory: &Path, files: &mut Vec<SourceFile>) -> Result<Value> {
    let path = directory.join("config.json");
    read_json(&path, files)?.ok_or_else(|| SourceError::MissingFile {
        path,
        needed_for: "it describes the model; download the whole checkpoint".into(),
    })
}

/// Reads the JSON files other than `config.json`.
fn read_others(
    directory: &Path,
    mut config: Value,
    tensors: BTreeMap<String, Tensor>,
    mut files: Vec<SourceFile>,
) -> Result<Checkpoint> {
    check_layout(directory, &config)?;
    let tokenizer_config = read_json(&directory.join("tokenizer_config.json"), &mut files)?;
    let tokenizer =
        tokenizer_files::read(directory, &config, tokenizer_config.as_ref(), &mut files)?;
    let checked = tokenizer_files::check(&tokenizer, &config, &directory.display().to_string())?;
    tokenizer_files::complete(&mut config, tokenizer_config.as_ref(), &checked);
    let processors = Processors::read(directory, &config, &mut files)?;
    Ok(Checkpoint {
        generation_config: read_json(&directory.join("generation_config.json"), &mut files)?,
        preprocessor_config: processors.main,
        video_preprocessor_config: processors.video,
        chat_template: chat::read(directory, tokenizer_config.as_ref(), &mut files)?,
        config,
        tokenizer,
        files,
        tensors,
        adapted: BTreeSet::new(),
    })
}

/// Rejects the layout of LLaVA's original repository, which has the same `model_type` as the
/// converted checkpoints but a different configuration and different tensors.
fn check_layout(directory: &Path, config: &Value) -> Result<()> {
    let Some(tower) = config.get("mm_vision_tower") else {
        return Ok(());
    };
    Err(SourceError::Unsupported {
        file: directory.join("config.json").display().to_string(),
        what: "the layout of the original LLaVA repository, with mm_vision_tower".into(),
        found: tower.to_string(),
        supported: "the layout of transformers; use the checkpoint of the llava-hf organization"
            .into(),
    })
}

/// Reads the weights of a directory: one file, or shards with an index.
fn read_directory(
    directory: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<BTreeMap<String, Tensor>> {
    let whole = directory.join("model.safetensors");
    if whole.exists() {
        return safetensors::read_file(&whole, files);
    }
    let index_path = directory.join(INDEX);
    if let Some(index) = read_json(&index_path, files)? {
        let index_file = index_path.display().to_string();
        let tensors = safetensors::read_sharded(directory, &index, &index_file, files)?;
        // Weights come first; the index was read before them.
        files.rotate_left(1);
        return Ok(tensors);
    }
    match &safetensors_in(directory)?[..] {
        [only] => safetensors::read_file(only, files),
        [] => Err(SourceError::NotACheckpoint {
            path: directory.to_path_buf(),
            found: what_lies_in(directory),
            expected: format!("model.safetensors, or shards with {INDEX}"),
        }),
        several => {
            let names: Vec<String> = several.iter().map(|path| file_name(path)).collect();
            Err(SourceError::MissingFile {
                path: index_path,
                needed_for: format!(
                    "there are {} safetensors files ({}) and no index; \
                     download the index, or name one file",
                    several.len(),
                    some_of(&names)
                ),
            })
        }
    }
}

/// Reads the weights of a single file.
fn read_single(
    path: &Path,
    directory: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<BTreeMap<String, Tensor>> {
    let index_path = directory.join(INDEX);
    if let Some(index) = read_json(&index_path, &mut Vec::new())? {
        let shards = safetensors::shards(&index, &index_path.display().to_string())?;
        if shards.len() > 1 && shards.contains_key(&file_name(path)) {
            return Err(SourceError::NotACheckpoint {
                path: path.to_path_buf(),
                found: format!("one of {} shards", shards.len()),
                expected: format!("the directory {}", directory.display()),
            });
        }
    }
    safetensors::read_file(path, files)
}

/// Lists the safetensors files of a directory, sorted by name.
fn safetensors_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| SourceError::Io {
        path: directory.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Describes a directory without safetensors.
fn what_lies_in(directory: &Path) -> String {
    let has = |name: &str| directory.join(name).exists();
    if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        return "pickled PyTorch weights, which are not read because they can run code; \
                save the model again with safe_serialization=True"
            .into();
    }
    let holds_gguf = std::fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|e| e.is_ok_and(|e| e.path().extension().is_some_and(|e| e == "gguf")))
    });
    if holds_gguf {
        return "a directory with GGUF files; name the language model's file itself".into();
    }
    "a directory without weights".into()
}
