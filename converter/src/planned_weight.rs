//! A weight of a planned record.

use edge_lmm_models::weights::WeightSpec;
use edge_lmm_ops::Format;

use crate::factors::Factors;
use crate::source::Checkpoint;

/// A weight and its size in the record.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedWeight {
    /// Name, sources and storage.
    pub spec: WeightSpec,
    /// Format of a packed weight, `None` for a dense one.
    pub format: Option<Format>,
    /// Bytes in the record.
    pub bytes: usize,
    /// Factors of its rows and columns.
    pub factors: Factors,
}

impl PlannedWeight {
    /// Returns the name of the format: `q4`, ..., or `dense f32` for weights that are never packed.
    pub fn scheme(&self) -> String {
        self.format
            .map_or_else(|| "dense f32".to_owned(), |format| format.to_string())
    }

    /// Returns the source tensors with their types.
    pub fn sources(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let describe = |tensor: &str| match checkpoint.tensor(tensor) {
            Some(info) => format!("{tensor} ({})", info.dtype),
            None => tensor.to_owned(),
        };
        self.spec
            .sources
            .iter()
            .map(|source| describe(&source.tensor))
            .collect()
    }

    /// Describes the weight, its format and its sources in one line.
    pub(crate) fn describe(&self, checkpoint: &Checkpoint) -> String {
        format!(
            "{}: {} x {} as {}, {} bytes, from {}",
            self.spec.name,
            self.spec.rows(),
            self.spec.cols(),
            self.scheme(),
            self.bytes,
            self.sources(checkpoint).join(", ")
        )
    }
}
