//! The divergence of the predictions that one weight in 4 bits causes.

use std::path::Path;
use std::sync::Arc;

use edge_lmm_ops::{Format, MatrixShape};

use crate::calibration::Samples;
use crate::pack;
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::predictions::{PackedWeight, Predictor};
use crate::progress::Progress;
use crate::source::Checkpoint;

/// The sensitivity of the predictions to one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Name in the record.
    pub name: String,
    /// Mean Kullback-Leibler divergence of the predictions with this weight in 4 bits from those with
    /// all weights in 8 bits, in nats.
    pub divergence: f64,
    /// Bytes that the weight needs more in 8 bits.
    pub bytes: usize,
}

impl Sensitivity {
    /// Returns the divergence per byte.
    pub fn per_byte(&self) -> f64 {
        self.divergence / self.bytes.max(1) as f64
    }
}

/// Measures `weights` one by one, of a model whose other weights have 8 bits.
///
/// # Errors
/// If the samples do not fit the model, or the temporary file `path` cannot be written.
pub(super) fn measure(
    eight_bits: &Plan,
    weights: &[&PlannedWeight],
    checkpoint: &Arc<Checkpoint>,
    samples: &Samples,
    path: &Path,
    progress: &Progress,
) -> Result<Vec<Sensitivity>, ConvertError> {
    let predictor = Predictor::new(eight_bits, checkpoint, samples, path, progress)?;
    let reference = predictor.run(None)?;
    let mut sensitivities = Vec::new();
    for (done, weight) in weights.iter().enumerate() {
        progress.report("measuring the weights", done, weights.len());
        let (packed, _) = pack::pack(checkpoint, weight, Format::Q4, None, &|_| {})?;
        let shape = MatrixShape::new(Format::Q4, weight.spec.rows(), weight.spec.cols());
        let larger = MatrixShape {
            format: Format::Q8,
            ..shape
        };
        let changed = PackedWeight {
            name: weight.spec.name.clone(),
            shape,
            bytes: packed.into(),
        };
        let bytes = larger.byte_len().unwrap_or_default();
        sensitivities.push(Sensitivity {
            name: weight.spec.name.clone(),
            divergence: reference.divergence(&predictor.run(Some(changed))?),
            bytes: bytes.saturating_sub(weight.bytes),
        });
    }
    Ok(sensitivities)
}
