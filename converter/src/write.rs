//! Writing of the record, one weight at a time.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use edge_lmm_kernels::pack::PackStats;
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_record::output::Output;
use edge_lmm_record::{Description, WriteError};
use serde::Serialize;

use crate::calibration::{Calibration, PackedWeights};
use crate::pack::{self, Packed};
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::source::{Checkpoint, some_of};

/// The result of a conversion.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Family of the model.
    pub family: &'static str,
    /// Size of the record in bytes.
    pub file_bytes: u64,
    /// Weights in the order of the record.
    pub tensors: Vec<TensorReport>,
}

/// The result of converting one weight.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Name in the record.
    pub name: String,
    /// Part of the model.
    pub part: String,
    /// Source tensors with their types.
    pub sources: Vec<String>,
    /// `q4`, `q8`, `f16`, `f32`, or `dense f32` for weights that are never packed.
    pub scheme: String,
    /// Output dimension.
    pub rows: usize,
    /// Input dimension.
    pub cols: usize,
    /// Bytes in the record.
    pub bytes: usize,
    /// Norm of the quantization error over the norm of the weight.
    pub relative_error: f64,
    /// Number of values too small for the format, which are lost entirely or in large part.
    pub lost: usize,
}

/// Callback for each started weight and the bytes packed.
type Progress = Box<dyn Fn(&str, usize)>;

/// State shared by the callbacks that write one record.
struct Job {
    checkpoint: Arc<Checkpoint>,
    /// Weights that a calibration has packed already.
    calibrated: RefCell<PackedWeights>,
    progress: Progress,
    reports: RefCell<Vec<TensorReport>>,
}

/// Writes the record of `plan` to `path` atomically, replacing an existing file. The file appears
/// only when it is complete. `progress` is as in [`write_record_to`].
///
/// # Errors
/// As [`write_record_to`], or if no file can be created at `path`.
pub fn write_record(
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    path: &Path,
    progress: impl Fn(&str, usize) + 'static,
) -> Result<Report, ConvertError> {
    write_record_to(Output::create(path, true)?, plan, checkpoint, progress)
}

/// Writes the record of `plan`. `progress` receives the name of every weight with 0 bytes when it
/// is started, and then the number of bytes packed, in one or several steps.
///
/// # Errors
/// If a tensor cannot be read or packed, or the file cannot be written; no file is left behind.
pub fn write_record_to(
    output: Output,
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    progress: impl Fn(&str, usize) + 'static,
) -> Result<Report, ConvertError> {
    write_calibrated(output, plan, checkpoint, None, progress)
}

/// Writes the record of `plan` as [`write_record_to`] does, with weights quantized by a calibration.
///
/// # Errors
/// As [`write_record_to`], or if the samples cannot be run.
pub fn write_calibrated(
    output: Output,
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    calibration: Option<Calibration>,
    progress: impl Fn(&str, usize) + 'static,
) -> Result<Report, ConvertError> {
    let mut plan = plan.clone();
    let calibrated = match calibration {
        Some(calibration) => calibration.run(&mut plan, &checkpoint, &progress)?,
        None => PackedWeights::default(),
    };
    let job = Rc::new(Job {
        checkpoint: checkpoint.clone(),
        calibrated: RefCell::new(calibrated),
        progress: Box::new(progress),
        reports: RefCell::new(Vec::new()),
    });
    let description = Description {
        info: &plan.info,
        tokenizer: &checkpoint.tokenizer,
        template: checkpoint.chat_template.as_deref(),
    };
    let specs: Vec<WeightSpec> = plan.weights.iter().map(|w| w.spec.clone()).collect();
    let (weights, packing) = (plan.weights, job.clone());
    let file_bytes = edge_lmm_record::write_record(output, description, &specs, move |index| {
        packing.bytes(&weights[index])
    })
    .map_err(|error| match error {
        WriteError::Weight(error) => error,
        WriteError::Output(error) => ConvertError::Output(error),
        WriteError::Record { path, reason } => ConvertError::Write { path, reason },
    })?;
    let tensors = job.reports.take();
    warn_of_lost_weights(&tensors);
    Ok(Report {
        family: plan.family.title,
        file_bytes,
        tensors,
    })
}

/// Warns once of values that are too small for their format: the model is another one where
/// something scales them up again.
fn warn_of_lost_weights(tensors: &[TensorReport]) {
    let lossy: Vec<&TensorReport> = tensors.iter().filter(|t| t.lost > 0).collect();
    if lossy.is_empty() {
        return;
    }
    let described: Vec<String> = lossy
        .iter()
        .map(|t| {
            format!(
                "{} ({} of {} in {})",
                t.name,
                t.lost,
                t.rows * t.cols,
                t.scheme
            )
        })
        .collect();
    log::warn!(
        "values too small for their format are lost in {} weights: {}; if something scales them \
         up again, the answers change: convert that part with f32",
        lossy.len(),
        some_of(&described)
    );
}

impl Job {
    /// Returns the bytes of a weight as stored in the record, and keeps its report.
    fn bytes(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        let (bytes, stats) = match self.calibrated.borrow_mut().read(&spec.name)? {
            Some(packed) => packed,
            None => self.pack(weight)?,
        };
        self.reports
            .borrow_mut()
            .push(self.report(weight, bytes.len(), &stats));
        // Every tensor is read once, so its pages can be released.
        for file in &self.checkpoint.files {
            file.release();
        }
        Ok(bytes)
    }

    fn pack(&self, weight: &PlannedWeight) -> Result<Packed, ConvertError> {
        let name = &*weight.spec.name;
        (self.progress)(name, 0);
        if let (Storage::Packed { .. }, Some(format)) = (weight.spec.storage, weight.format) {
            let progress = |bytes| (self.progress)(name, bytes);
            return pack::pack(&self.checkpoint, weight, format, None, &progress);
        }
        let values = pack::dense(&self.checkpoint, weight)?;
        (self.progress)(name, size_of_val(&*values));
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok((bytes, PackStats::default()))
    }

    fn report(&self, weight: &PlannedWeight, bytes: usize, stats: &PackStats) -> TensorReport {
        let spec = &weight.spec;
        TensorReport {
            name: spec.name.clone(),
            part: spec.part.to_string(),
            sources: weight.sources(&self.checkpoint),
            scheme: weight.scheme(),
            rows: spec.rows(),
            cols: spec.cols(),
            bytes,
            relative_error: stats.relative_error(),
            lost: stats.lost,
        }
    }
}
