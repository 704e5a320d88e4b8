//! The size of a record, in bytes and in bits per weight.

use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_record::Record;
use serde::{Deserialize, Serialize};

/// The size of a record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Size {
    /// Bytes of the whole file.
    pub bytes: usize,
    /// Number of weights.
    pub weights: usize,
    /// Bits per weight of the matrices in the layers.
    pub layer_bits: f64,
    /// Bits per weight of the table of embeddings and the output head.
    pub vocabulary_bits: f64,
    /// Bits per weight of the whole file, with tokenizer and configuration.
    pub file_bits: f64,
}

impl Size {
    /// Measures a record whose model has the weights `specs`.
    pub fn of(record: &Record, specs: &[WeightSpec]) -> Self {
        let weights = |spec: &WeightSpec| spec.rows() * spec.cols();
        let bits_of = |is_included: &dyn Fn(&WeightSpec) -> bool| {
            let included: Vec<&WeightSpec> = (specs.iter())
                .filter(|spec| matches!(spec.storage, Storage::Packed { .. }) && is_included(spec))
                .collect();
            let bytes = |spec: &&WeightSpec| record.bytes_of(&spec.name).map_or(0, <[u8]>::len);
            bits(
                included.iter().map(bytes).sum(),
                included.iter().map(|spec| weights(spec)).sum(),
            )
        };
        let count = specs.iter().map(weights).sum();
        Self {
            bytes: record.len(),
            weights: count,
            layer_bits: bits_of(&|spec| !spec.is_vocabulary()),
            vocabulary_bits: bits_of(&WeightSpec::is_vocabulary),
            file_bits: bits(record.len(), count),
        }
    }
}

fn bits(bytes: usize, weights: usize) -> f64 {
    8.0 * bytes as f64 / weights.max(1) as f64
}
