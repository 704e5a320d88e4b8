//! Packs weights and writes the record, one weight at a time.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use edge_lmm_kernels::format::PANEL;
use edge_lmm_kernels::pack::{PackStats, pack_rows};
use edge_lmm_kernels::pool;
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_ops::{Format, MatrixShape};
use edge_lmm_record::output::Output;
use edge_lmm_record::{Description, WriteError};
use serde::Serialize;

use crate::plan::{ConvertError, Plan, PlannedWeight};
use crate::source::{Checkpoint, some_of};

/// Values that one task reads and packs at a time; a few of them are in memory at once.
const CHUNK: usize = 1 << 20;

/// What became of every weight.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Family of the model.
    pub family: &'static str,
    /// Bytes of the record.
    pub file_bytes: u64,
    /// The weights, in the order of the record.
    pub tensors: Vec<TensorReport>,
}

/// What became of a weight.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Name in the record.
    pub name: String,
    /// Part of the model.
    pub part: String,
    /// Tensors it was made of, with their types.
    pub sources: Vec<String>,
    /// `q4`, `q8`, `f16`, `f32`, or `dense f32` for what is never packed.
    pub scheme: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bytes in the record.
    pub bytes: usize,
    /// Norm of the quantization error over the norm of the weight.
    pub relative_error: f64,
    /// Values that are too small for the format, so that little or nothing of them is left.
    pub lost: usize,
}

/// Hears of every weight that is begun and of the bytes that are packed.
type Progress = Box<dyn Fn(&str, usize)>;

/// Packed bytes with what the packing lost.
type Packed = Result<(Vec<u8>, PackStats), ConvertError>;

/// Everything the writing of one record shares.
struct Job {
    checkpoint: Arc<Checkpoint>,
    progress: Progress,
    reports: RefCell<Vec<TensorReport>>,
}

/// Writes the record of `plan` to `path`, atomically: the file appears when it is whole, and
/// replaces another one. `progress` as in [`write_record_to`].
///
/// # Errors
/// As [`write_record_to`], or if `path` is no place for a file.
pub fn write_record(
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    path: &Path,
    progress: impl Fn(&str, usize) + 'static,
) -> Result<Report, ConvertError> {
    write_record_to(Output::create(path, true)?, plan, checkpoint, progress)
}

/// Writes the record of `plan`. `progress` gets the name of every weight with 0 bytes when it is
/// begun, and then the bytes that are packed, in one or several steps.
///
/// # Errors
/// If a tensor cannot be read or packed, or the file cannot be written; nothing is left behind.
pub fn write_record_to(
    output: Output,
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    progress: impl Fn(&str, usize) + 'static,
) -> Result<Report, ConvertError> {
    let job = Rc::new(Job {
        checkpoint: checkpoint.clone(),
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
    /// The bytes of a weight as the record stores them; keeps hash and report.
    fn bytes(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        (self.progress)(&spec.name, 0);
        let (bytes, stats) = match (spec.storage, weight.format) {
            (Storage::Packed { cols }, Some(format)) => self.pack(spec, format, cols)?,
            _ => (self.dense(spec)?, PackStats::default()),
        };
        self.reports
            .borrow_mut()
            .push(self.report(weight, bytes.len(), &stats));
        // Every tensor is read once: what it took of the memory is free again.
        for file in &self.checkpoint.files {
            file.release();
        }
        Ok(bytes)
    }

    fn dense(&self, spec: &WeightSpec) -> Result<Vec<u8>, ConvertError> {
        let mut values = Vec::with_capacity(spec.rows() * spec.cols());
        read_rows(&self.checkpoint, spec, 0..spec.rows(), &mut values)?;
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
    fn pack(&self, spec: &WeightSpec, format: Format, cols: usize) -> Packed {
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
        // A batch of tasks at a time, so that what waits to be joined stays small.
        for batch in starts.chunks(2 * pool.threads()) {
            let slots: Vec<Mutex<Option<Packed>>> =
                batch.iter().map(|_| Mutex::new(None)).collect();
            pool.run(batch.len(), |task| {
                let rows = batch[task]..(batch[task] + step).min(shape.rows);
                let packed = pack_chunk(checkpoint, spec, shape, rows);
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
            relative_error: if stats.squared_norm > 0.0 {
                (stats.squared_error / stats.squared_norm).sqrt()
            } else {
                0.0
            },
            lost: stats.lost,
        }
    }
}

fn pack_chunk(
    checkpoint: &Checkpoint,
    spec: &WeightSpec,
    shape: MatrixShape,
    rows: Range<usize>,
) -> Packed {
    let mut values = Vec::with_capacity(rows.len() * shape.cols);
    read_rows(checkpoint, spec, rows.clone(), &mut values)?;
    let mut bytes = Vec::new();
    let stats = pack_rows(shape, &values, &mut bytes).map_err(|error| ConvertError::Pack {
        weight: spec.name.clone(),
        reason: format!("rows {} to {}: {error}", rows.start, rows.end),
    })?;
    Ok((bytes, stats))
}

/// Rows of a weight, across the tensors it is stacked of.
fn read_rows(
    checkpoint: &Checkpoint,
    spec: &WeightSpec,
    rows: Range<usize>,
    out: &mut Vec<f32>,
) -> Result<(), ConvertError> {
    let mut first = 0;
    for source in &spec.sources {
        let own = first..first + source.rows;
        let (start, end) = (rows.start.max(own.start), rows.end.min(own.end));
        if start < end {
            checkpoint.read_rows(&source.tensor, start - first..end - first, out)?;
        }
        first = own.end;
    }
    Ok(())
}
