//! Files of input statistics: the program's own, and importance matrices of llama.cpp.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};

use super::CalibrationError;
use crate::source::gguf::Header;

/// Mean squares of the inputs of weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SavedStatistics {
    /// By the weight's name in the record, or by the tensor's name in llama.cpp.
    mean_squares: BTreeMap<String, Vec<f32>>,
}

impl SavedStatistics {
    /// Reads the file of an earlier calibration, or an importance matrix of llama.cpp: the older
    /// format (`.dat`) or GGUF.
    ///
    /// # Errors
    /// If the file cannot be read or has another format.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let bytes = std::fs::read(path).map_err(|error| invalid(path, error))?;
        let mean_squares = match &*bytes {
            [b'G', b'G', b'U', b'F', ..] => of_gguf(path, &bytes)?,
            // The length of a safetensors header is followed by its JSON.
            [_, _, _, _, _, _, _, _, b'{', ..] => of_safetensors(path, &bytes)?,
            _ => of_dat(&bytes).ok_or_else(|| {
                invalid(
                    path,
                    "neither statistics of this program nor an importance matrix of llama.cpp",
                )
            })?,
        };
        if mean_squares.is_empty() {
            return Err(invalid(path, "it has no statistics"));
        }
        Ok(Self { mean_squares })
    }

    /// Adds the mean squares of a weight's inputs.
    pub(crate) fn add(&mut self, weight: &str, mean_squares: Vec<f32>) {
        self.mean_squares.insert(weight.to_owned(), mean_squares);
    }

    /// Returns the mean squares of the `width` inputs of a weight.
    ///
    /// # Errors
    /// If they are of another number of inputs, or not finite.
    pub(crate) fn of(
        &self,
        weight: &str,
        width: usize,
    ) -> Result<Option<&[f32]>, CalibrationError> {
        let names = std::iter::once(weight.to_owned()).chain(names_in_llama_cpp(weight));
        let mut found = names.filter_map(|name| self.mean_squares.get_key_value(&name));
        let Some((name, values)) = found.next() else {
            return Ok(None);
        };
        if values.len() != width {
            return Err(CalibrationError::Statistics {
                reason: format!(
                    "{name} has {} inputs, expected {width}: the statistics belong to another model",
                    values.len()
                ),
            });
        }
        match values.iter().find(|x| !x.is_finite() || **x < 0.0) {
            Some(value) => Err(CalibrationError::Statistics {
                reason: format!("{name} has the mean square {value}, expected 0 or more"),
            }),
            None => Ok(Some(values)),
        }
    }

    /// Returns the content of a file.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CalibrationError> {
        let data: Vec<(&String, Vec<u8>)> = (self.mean_squares.iter())
            .map(|(name, values)| (name, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let failed = |error: SafeTensorError| CalibrationError::Statistics {
            reason: error.to_string(),
        };
        let mut views = Vec::with_capacity(data.len());
        for (name, bytes) in &data {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            views.push((*name, view.map_err(failed)?));
        }
        safetensors::serialize(views, None).map_err(failed)
    }
}

fn invalid(path: &Path, reason: impl Display) -> CalibrationError {
    CalibrationError::Statistics {
        reason: format!("cannot read {}: {reason}", path.display()),
    }
}

/// Names of the tensors that have the same inputs as a weight of the record.
fn names_in_llama_cpp(weight: &str) -> Vec<String> {
    let name = weight.strip_suffix(".weight").unwrap_or(weight);
    if matches!(name, "text.head" | "text.embedding") {
        return vec!["output.weight".to_owned()];
    }
    let layer = name.strip_prefix("text.layers.");
    let Some((layer, name)) = layer.and_then(|rest| rest.split_once('.')) else {
        return Vec::new();
    };
    let names: &[&str] = match name {
        "qkv" => &["attn_q", "attn_qkv", "attn_k", "attn_v"],
        "out" => &["attn_output"],
        "gate_up" => &["ffn_up", "ffn_gate"],
        "down" => &["ffn_down"],
        _ => &[],
    };
    (names.iter())
        .map(|name| format!("blk.{layer}.{name}.weight"))
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    bytes.chunks_exact(4).map(float).collect()
}

fn of_safetensors(
    path: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, Vec<f32>>, CalibrationError> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| invalid(path, error))?;
    let tensors = tensors.tensors().into_iter();
    tensors
        .map(|(name, tensor)| match tensor.dtype() {
            Dtype::F32 => Ok((name, floats(tensor.data()))),
            other => Err(invalid(
                path,
                format!("{name} is {other:?}, expected F32: not a file of statistics"),
            )),
        })
        .collect()
}

/// Reads the sums of squares `NAME.in_sum2` and the numbers of inputs `NAME.counts`.
fn of_gguf(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Vec<f32>>, CalibrationError> {
    let header = Header::parse(bytes, &path.display().to_string());
    let header = header.map_err(|error| invalid(path, error))?;
    let values = |name: &str| {
        let entry = header.tensors.get(name);
        let entry = entry.filter(|entry| entry.element.name == "F32")?;
        Some(floats(&bytes[entry.bytes.clone()]))
    };
    let mut found = BTreeMap::new();
    for tensor in header.tensors.keys() {
        let Some(name) = tensor.strip_suffix(".in_sum2") else {
            continue;
        };
        let counts = values(&format!("{name}.counts")).unwrap_or_default();
        // Several counts belong to the experts of a layer.
        if let (Some(mut sums), [count]) = (values(tensor), &*counts) {
            sums.iter_mut().for_each(|sum| *sum /= count.max(1.0));
            found.insert(name.to_owned(), sums);
        }
    }
    Ok(found)
}

/// Reads the older format: the number of entries, then for each its name, the number of calls and
/// the sums of the calls' mean squares. `None` if the bytes are not of that form.
fn of_dat(bytes: &[u8]) -> Option<BTreeMap<String, Vec<f32>>> {
    let mut rest = bytes;
    let mut take = |len: usize| {
        let (taken, left) = rest.split_at_checked(len)?;
        rest = left;
        Some(taken)
    };
    let number = |bytes: &[u8]| -> Option<usize> {
        let value = i32::from_le_bytes(bytes.try_into().ok()?);
        usize::try_from(value).ok()
    };
    let mut found = BTreeMap::new();
    for _ in 0..number(take(4)?)? {
        let len = number(take(4)?)?;
        let name = String::from_utf8(take(len)?.to_vec()).ok()?;
        let calls = number(take(4)?)?;
        let len = number(take(4)?)?;
        let mut values = floats(take(len.checked_mul(4)?)?);
        let calls = calls.max(1) as f32;
        values.iter_mut().for_each(|value| *value /= calls);
        found.insert(name, values);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<SavedStatistics, CalibrationError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        SavedStatistics::read(file.path())
    }

    /// The importance matrix of `blk.0.ffn_down.weight` in the older format.
    fn dat() -> Vec<u8> {
        let name = b"blk.0.ffn_down.weight";
        let mut bytes = 1i32.to_le_bytes().to_vec();
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name);
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(3i32.to_le_bytes());
        bytes.extend([2.0f32, 4.0, 8.0].iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    /// The same in GGUF, seen in four inputs.
    fn gguf() -> Vec<u8> {
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        text(&mut bytes, "general.type");
        bytes.extend(8u32.to_le_bytes());
        text(&mut bytes, "imatrix");
        for (name, len, offset) in [("counts", 1u64, 0u64), ("in_sum2", 3, 32)] {
            text(&mut bytes, &format!("blk.0.ffn_down.weight.{name}"));
            bytes.extend(2u32.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(4.0f32.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([4.0f32, 8.0, 16.0].iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    #[test]
    fn importance_matrices_are_read() {
        for bytes in [dat(), gguf()] {
            let saved = read(&bytes).expect("statistics");
            let found = saved.of("text.layers.0.down.weight", 3).expect("a width");
            assert_eq!(found, Some(&[1.0, 2.0, 4.0][..]));
            assert_eq!(
                saved.of("text.layers.1.down.weight", 3).expect("none"),
                None
            );
            let error = saved
                .of("text.layers.0.down.weight", 4)
                .expect_err("a width");
            assert!(error.to_string().contains("another model"), "{error}");
        }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let mut saved = SavedStatistics::default();
        saved.add("vision.blocks.0.qkv.weight", vec![0.5, 0.0]);
        let again = read(&saved.to_bytes().expect("bytes")).expect("statistics");
        assert_eq!(again, saved);
    }

    #[test]
    fn other_files_are_errors() {
        let cut = dat();
        for bytes in [&b"hello"[..], &cut[..cut.len() - 1], &gguf()[..40], b""] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
