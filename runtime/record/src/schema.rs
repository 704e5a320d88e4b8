//! Metadata of a record.

use std::collections::BTreeMap;

use burn::tensor::DType;
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_ops::{Format, MatrixShape};
use serde::{Deserialize, Serialize};

use edge_lmm_models::family::ModelFiles;

/// Version of the record format that this code reads and writes. Packed layouts, names of
/// weights and the fields of [`RecordInfo`] are part of it.
pub const FORMAT_VERSION: u32 = 3;

/// Key of [`RecordInfo`], as JSON, in the burnpack metadata.
pub const INFO_KEY: &str = "edge-lmm";
/// Key of the text of `tokenizer.json`.
pub const TOKENIZER_KEY: &str = "tokenizer";
/// Key of the chat template, where there is one.
pub const TEMPLATE_KEY: &str = "chat-template";
/// Name of the tensor that holds one [xxh3](https://xxhash.com) hash (64 bits, little endian)
/// per other tensor, in the order of their names. It stands last in the file, so that a record
/// is written in one pass.
pub const CHECKSUMS: &str = "checksums";

/// Description of a record's model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordInfo {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Family and configuration, after pruning.
    pub files: ModelFiles,
    /// Format of every packed weight.
    pub formats: BTreeMap<String, PackedFormat>,
    /// Files that the record was made from.
    pub sources: Vec<SourceFile>,
    /// Version of the converter.
    pub converter: String,
}

impl RecordInfo {
    /// Returns the element type and shape of a weight's tensor; no bytes for a packed weight
    /// without a format.
    pub fn stored(&self, spec: &WeightSpec) -> (DType, Vec<usize>) {
        match spec.storage {
            Storage::Packed { cols } => {
                let format = self.formats.get(&spec.name);
                let bytes = format.and_then(|format| {
                    MatrixShape {
                        format: format.0,
                        rows: spec.rows(),
                        cols,
                    }
                    .byte_len()
                });
                (DType::U8, vec![bytes.unwrap_or(0)])
            }
            Storage::Dense { cols } => (
                DType::F32,
                std::iter::once(spec.rows()).chain(cols).collect(),
            ),
        }
    }
}

/// A packed format, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedFormat(pub Format);

impl Serialize for PackedFormat {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackedFormat {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map(Self).map_err(|_| {
            serde::de::Error::custom(format!(
                "unknown weight format {name:?}, expected f32, f16, q8 or q4"
            ))
        })
    }
}

/// A file that a record was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name without folders.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// xxh3 of the content (64 bits, hexadecimal).
    pub xxh3: String,
}
