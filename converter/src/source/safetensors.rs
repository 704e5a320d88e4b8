//! Tensors in safetensors files, single or sharded.
//!
//! Format: <https://huggingface.co/docs/safetensors>. The `safetensors` crate checks the header
//! (offsets without gap or overlap, shape and type against size); this module checks header and
//! data against the file.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::decode::Decoder;
use super::error::{Result, SourceError, malformed, some_of};
use super::file::SourceFile;
use super::map;
use super::view::{Stored, View};
use super::{Tensor, TensorInfo};

/// The supported element types.
const SUPPORTED: &str = "F32, F16, BF16";
/// Header size limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the tensors of one file.
pub(super) fn read_file(
    path: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<BTreeMap<String, Tensor>> {
    let map = Arc::new(map::open(path)?);
    let file: Arc<str> = path.display().to_string().into();
    let (data_start, metadata) = read_header(&map, &file)?;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let decoder = match info.dtype {
            Dtype::F32 => Some(Decoder::F32),
            Dtype::F16 => Some(Decoder::F16),
            Dtype::BF16 => Some(Decoder::Bf16),
            _ => None,
        };
        let dtype = info.dtype.to_string();
        let stored = Stored::new(
            (&map, &file),
            data_start + start..data_start + end,
            dtype.clone(),
            decoder,
            SUPPORTED,
        )
        .ok_or_else(|| {
            malformed(
                &*file,
                format!("tensor {name} at bytes {start}..{end}"),
                "a tensor inside the file",
            )
        })?;
        let info = TensorInfo {
            dtype,
            shape: info.shape.clone(),
        };
        let view = View::Whole(stored);
        tensors.insert(name, Tensor { info, view });
    }
    files.push(SourceFile::new(path, map));
    Ok(tensors)
}

/// Checks the header against itself and the file. Returns the start of the data and the header.
fn read_header(bytes: &[u8], file: &str) -> Result<(usize, Metadata)> {
    const ADVICE: &str = "the file is damaged or was not downloaded completely";
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(malformed(
            file,
            format!("{} bytes", bytes.len()),
            format!("a safetensors file, which starts with an 8-byte header length: {ADVICE}"),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if let Some(found) = another_format(bytes) {
        return Err(malformed(
            file,
            found,
            "a safetensors file; download it again, or save the model with safe_serialization=True",
        ));
    }
    if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
        return Err(malformed(
            file,
            format!("a header of {length} bytes in a file of {}", bytes.len()),
            format!("a header inside the file and of at most {MAX_HEADER_BYTES} bytes: {ADVICE}"),
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(header)
        .map_err(|e| malformed(file, format!("a header that is not text ({e})"), ADVICE))?;
    let metadata: Metadata = serde_json::from_str(text)
        .map_err(|e| malformed(file, format!("an invalid safetensors header ({e})"), ADVICE))?;
    if metadata.data_len() != data.len() {
        return Err(malformed(
            file,
            format!("{} bytes of data", data.len()),
            format!(
                "the {} bytes that its header describes: {ADVICE}",
                metadata.data_len()
            ),
        ));
    }
    Ok((8 + length as usize, metadata))
}

/// Identifies the format of a file without a safetensors header, if known. A safetensors header
/// begins with a brace after its 8-byte length, which text files do not have there.
fn another_format(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [_, _, _, _, _, _, _, _, b'{', ..] => None,
        [b'P', b'K', 3, 4, ..] => Some("a zip archive, as PyTorch writes its pickled weights"),
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file"),
        [b'{' | b'[', ..] => Some("a JSON document"),
        _ => None,
    }
}

/// Returns the shards of `model.safetensors.index.json` with the tensors of each.
pub(super) fn shards(index: &Value, file: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| {
            malformed(
                file,
                "no weight_map",
                "an object weight_map from tensor names to file names",
            )
        })?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().filter(|s| is_plain_name(s)).ok_or_else(|| {
            malformed(
                file,
                format!("tensor {tensor} in {shard}"),
                "the name of a file in the same directory",
            )
        })?;
        shards
            .entry(shard.to_owned())
            .or_default()
            .push(tensor.clone());
    }
    Ok(shards)
}

/// Returns `true` if a name has no directory part: an index must not point outside its directory.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

/// Reads the tensors of a sharded checkpoint described by the index at `index_file`.
pub(super) fn read_sharded(
    directory: &Path,
    index: &Value,
    index_file: &str,
    files: &mut Vec<SourceFile>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (shard, expected) in shards(index, index_file)? {
        let path = directory.join(&shard);
        if !path.exists() {
            return Err(SourceError::MissingFile {
                path,
                needed_for: format!(
                    "{index_file} lists {} tensors ({}) of this shard; download it",
                    expected.len(),
                    some_of(&expected)
                ),
            });
        }
        let mut found = read_file(&path, files)?;
        for name in expected {
            let Some(tensor) = found.remove(&name) else {
                return Err(SourceError::MissingTensor {
                    file: path.display().to_string(),
                    tensor: name,
                    needed_for: format!(
                        "{index_file} assigns it to this shard; the files do not belong together"
                    ),
                });
            };
            tensors.insert(name, tensor);
        }
        if !found.is_empty() {
            let names: Vec<&String> = found.keys().collect();
            log::warn!(
                "{}: ignoring tensors that the index does not list: {}",
                path.display(),
                some_of(&names)
            );
        }
    }
    Ok(tensors)
}
