//! The divergence of the predictions that one weight in 4 bits causes.

use edge_lmm_kernels::{Matrix, pack_rows};
use edge_lmm_ops::{Format, MatrixShape};

use super::Search;
use crate::calibration::PackedWeights;
use crate::pack;
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::predictions::{PackedWeight, Predictor};

/// The sensitivity of the predictions to one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Name in the record.
    pub name: String,
    /// Mean Kullback-Leibler divergence of the predictions with this weight in 4 bits from those with
    /// all weights in half precision, in nats.
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

/// Measures `weights` one by one, as they are in `rounded` or rounded to the nearest values, in the
/// model of the plan `half`, whose weights are in half precision.
///
/// # Errors
/// If the samples do not fit the model, or a file cannot be read or written.
pub(super) fn measure(
    search: &Search<'_>,
    half: &Plan,
    weights: &[&PlannedWeight],
    rounded: &mut PackedWeights,
) -> Result<Vec<Sensitivity>, ConvertError> {
    let Search {
        checkpoint,
        samples,
        path,
        progress,
        ..
    } = *search;
    let predictor = Predictor::new(half, checkpoint, samples, path, progress)?;
    let reference = predictor.run(None)?;
    let mut sensitivities = Vec::new();
    for (done, weight) in weights.iter().enumerate() {
        progress.report("measuring the weights", done, weights.len());
        let (packed, _) = match rounded.read(&weight.spec.name)? {
            Some(packed) => packed,
            None => pack::pack(checkpoint, weight, Format::Q4, None, &|_| {})?,
        };
        let larger = MatrixShape::new(Format::Q8, weight.spec.rows(), weight.spec.cols());
        let bytes = larger.byte_len().unwrap_or_default();
        let changed = unpacked(weight, &packed)?;
        sensitivities.push(Sensitivity {
            name: weight.spec.name.clone(),
            divergence: reference.divergence(&predictor.run(Some(changed))?),
            bytes: bytes.saturating_sub(weight.bytes),
        });
    }
    Ok(sensitivities)
}

/// Returns the values of a weight in 4 bits in half precision, so that its inputs are not rounded.
///
/// # Errors
/// If a value is beyond the range of half precision.
fn unpacked(weight: &PlannedWeight, packed: &[u8]) -> Result<PackedWeight, ConvertError> {
    let shape = MatrixShape::new(Format::Q4, weight.spec.rows(), weight.spec.cols());
    let matrix = Matrix::new(shape, packed).expect("the packed bytes are those of the shape");
    let mut values = vec![0.0; shape.rows * shape.cols];
    for (row, values) in values.chunks_exact_mut(shape.cols).enumerate() {
        matrix.row_into(row, values);
    }
    let shape = MatrixShape {
        format: Format::F16,
        ..shape
    };
    let mut bytes = Vec::new();
    pack_rows(shape, &values, &mut bytes).map_err(|error| ConvertError::Pack {
        weight: weight.spec.name.clone(),
        reason: error.to_string(),
    })?;
    Ok(PackedWeight {
        name: weight.spec.name.clone(),
        shape,
        bytes: bytes.into(),
    })
}
