//! Packing of weights and writing of the record, one weight at a time.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use edge_lmm_kernels::format::PANEL;
use edge_lmm_kernels::pack::{PackStats, pack_weighted};
use edge_lmm_kernels::pool;
use edge_lmm_kernels::{FormatError, Matrix};
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_ops::{Format, MatrixShape};
use edge_lmm_record::output::Output;
use edge_lmm_record::{Description, WriteError};
use serde::Serialize;

use crate::calibration::{Calibration, Rule};
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::rows::read_rows;
use crate::source::{Checkpoint, some_of};

/// Values that one task reads and packs at a time; a few such chunks are in memory at once.
const CHUNK: usize = 1 << 20;
/// Values that are rounded together; several copies of them are in memory.
const ROUNDED: usize = 1 << 24;

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

/// Packed bytes with the statistics of the packing.
type Packed = Result<(Vec<u8>, PackStats), ConvertError>;

/// State shared by the callbacks that write one record.
struct Job {
    checkpoint: Arc<Checkpoint>,
    calibration: Option<RefCell<Calibration>>,
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
    let job = Rc::new(Job {
        checkpoint: checkpoint.clone(),
        calibration: calibration.map(RefCell::new),
        progress: Box::new(progress),
        reports: RefCell::new(Vec::new()),
    });
    let description = Description {
        info: &plan.info,
        tokenizer: &checkpoint.tokenizer,
        template: checkpoint.chat_template.as_deref(),
    };
    let specs: Vec<WeightSpec> = plan.weights.iter().map(|w| w.spec.clone()).collect();
    let (weights, packing) = (plan.weights.clone(), job.clone());
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
    /// Returns the bytes of a weight as stored in the record, and keeps its hash and report.
    fn bytes(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        (self.progress)(&spec.name, 0);
        let (bytes, stats) = match (spec.storage, weight.format) {
            (Storage::Packed { cols }, Some(format)) => self.pack(weight, format, cols)?,
            _ => (self.dense(weight)?, PackStats::default()),
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

    fn dense(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        let mut values = Vec::with_capacity(spec.rows() * spec.cols());
        read_rows(&self.checkpoint, weight, 0..spec.rows(), &mut values)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(ConvertError::Pack {
                weight: spec.name.clone(),
                reason: format!("value {at} is {}", values[at]),
            });
        }
        (self.progress)(&spec.name, size_of_val(&*values));
        Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
    }

    /// Reads and packs runs of panels on all threads.
    fn pack(&self, weight: &PlannedWeight, format: Format, cols: usize) -> Packed {
        let spec = &weight.spec;
        let rule = match &self.calibration {
            Some(calibration) => calibration.borrow_mut().rule(&spec.name)?,
            None => None,
        };
        let rule = rule.as_ref();
        if let Some(rule) = rule.filter(|rule| rule.rounds()) {
            return self.pack_rounded(weight, format, cols, rule);
        }
        let shape = MatrixShape {
            format,
            rows: spec.rows(),
            cols,
        };
        let step = (CHUNK / cols).next_multiple_of(PANEL).max(PANEL);
        let starts: Vec<usize> = (0..shape.rows).step_by(step).collect();
        let pool = pool::global();
        let checkpoint = &*self.checkpoint;
        let mut bytes = Vec::with_capacity(shape.byte_len().unwrap_or_default());
        let mut stats = PackStats::default();
        // Works in batches to limit the memory of packed chunks that wait to be joined.
        for batch in starts.chunks(2 * pool.threads()) {
            let slots: Vec<Mutex<Option<Packed>>> =
                batch.iter().map(|_| Mutex::new(None)).collect();
            pool.run(batch.len(), |task| {
                let rows = batch[task]..(batch[task] + step).min(shape.rows);
                let packed = pack_chunk(checkpoint, weight, shape, rows, rule);
                *slots[task].lock().expect("no task panics with the lock") = Some(packed);
            });
            for slot in slots {
                let packed = slot.into_inner().expect("no task panics with the lock");
                let (chunk, chunk_stats) = packed.expect("every task fills its slot")?;
                bytes.extend_from_slice(&chunk);
                stats += chunk_stats;
                (self.progress)(&spec.name, chunk.len());
            }
        }
        Ok((bytes, stats))
    }

    /// Packs runs of rows one after the other, each on all threads.
    fn pack_rounded(
        &self,
        weight: &PlannedWeight,
        format: Format,
        cols: usize,
        rule: &Rule,
    ) -> Packed {
        let count = weight.spec.rows();
        let step = (ROUNDED / cols).next_multiple_of(PANEL).max(PANEL);
        let (mut bytes, mut stats) = (Vec::new(), PackStats::default());
        for start in (0..count).step_by(step) {
            let rows = start..(start + step).min(count);
            let shape = MatrixShape::new(format, rows.len(), cols);
            let mut values = Vec::with_capacity(rows.len() * cols);
            read_rows(&self.checkpoint, weight, rows.clone(), &mut values)?;
            let first = bytes.len();
            rule.pack(shape, &values, &mut bytes)
                .map_err(|error| unpackable(weight, &rows, &error))?;
            let packed = Matrix::new(shape, &bytes[first..])
                .map_err(|error| unpackable(weight, &rows, &error))?;
            // An input that is hardly ever used may have a large error on purpose.
            stats += PackStats {
                lost: 0,
                ..PackStats::of_rows(&packed, &values)
            };
            (self.progress)(&weight.spec.name, bytes.len() - first);
        }
        Ok((bytes, stats))
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

fn unpackable(weight: &PlannedWeight, rows: &Range<usize>, error: &FormatError) -> ConvertError {
    ConvertError::Pack {
        weight: weight.spec.name.clone(),
        reason: format!("rows {} to {}: {error}", rows.start, rows.end),
    }
}

fn pack_chunk(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    shape: MatrixShape,
    rows: Range<usize>,
    rule: Option<&Rule>,
) -> Packed {
    let mut values = Vec::with_capacity(rows.len() * shape.cols);
    read_rows(checkpoint, weight, rows.clone(), &mut values)?;
    let mut bytes = Vec::new();
    let mean_squares = rule.map(|rule| &*rule.mean_squares);
    let stats = pack_weighted(shape, &values, mean_squares, &mut bytes)
        .map_err(|error| unpackable(weight, &rows, &error))?;
    Ok((bytes, stats))
}
