//! Packs weights and writes the record, one weight at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use burn::module::ParamId;
use burn::tensor::{DType, Shape, TensorData};
use burn_store::{BurnpackWriter, TensorSnapshot, TensorSnapshotError};
use edge_lmm::Record;
use edge_lmm::output::Output;
use edge_lmm_kernels::format::PANEL;
use edge_lmm_kernels::pack::{PackStats, pack_rows};
use edge_lmm_kernels::pool;
use edge_lmm_models::record::{CHECKSUMS, INFO_KEY, TEMPLATE_KEY, TOKENIZER_KEY};
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_ops::{Format, MatrixShape};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::plan::{ConvertError, Plan, PlannedWeight};
use crate::rows::read_rows;
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
    hashes: RefCell<BTreeMap<String, u64>>,
    reports: RefCell<Vec<TensorReport>>,
    error: RefCell<Option<ConvertError>>,
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
        hashes: RefCell::new(BTreeMap::new()),
        reports: RefCell::new(Vec::new()),
        error: RefCell::new(None),
    });
    let unwritable = |reason: String| ConvertError::Write {
        path: output.path().to_owned(),
        reason,
    };
    let info = serde_json::to_string(&plan.info).map_err(|e| unwritable(e.to_string()))?;
    let mut snapshots: Vec<TensorSnapshot> = plan
        .weights
        .iter()
        .zip(1..)
        .map(|(weight, id)| weight_snapshot(weight.clone(), id, job.clone()))
        .collect();
    snapshots.push(checksum_snapshot(plan.weights.len(), job.clone()));
    let mut writer = BurnpackWriter::new(snapshots)
        .with_metadata(INFO_KEY, &info)
        .with_metadata(TOKENIZER_KEY, &checkpoint.tokenizer);
    if let Some(template) = &checkpoint.chat_template {
        writer = writer.with_metadata(TEMPLATE_KEY, template);
    }
    let written = writer.write_to_file(output.part());
    if let Some(error) = job.error.take() {
        return Err(error);
    }
    written.map_err(|e| unwritable(e.to_string()))?;
    seal(output.part()).map_err(|error| output.io(error))?;
    check(&output, plan)?;
    let file_bytes = output.finish()?;
    let tensors = job.reports.take();
    warn_of_lost_weights(&tensors);
    Ok(Report {
        family: plan.family.title,
        file_bytes,
        tensors,
    })
}

/// Puts the header's own hash where the first checksum is.
fn seal(path: &Path) -> std::io::Result<()> {
    let mut handle = File::options().read(true).write(true).open(path)?;
    let mut preamble = [0; 10];
    handle.read_exact(&mut preamble)?;
    let len = u32::from_le_bytes([preamble[6], preamble[7], preamble[8], preamble[9]]);
    let mut header = preamble.to_vec();
    (&mut handle).take(len.into()).read_to_end(&mut header)?;
    // The checksums are the last tensor, and its length is known from the file's end: one hash
    // per tensor and the header's, so the place is found by reading the record as a reader does.
    let place = checksum_place(&header).ok_or_else(|| {
        std::io::Error::other("the header that was just written cannot be read back")
    })?;
    handle.seek(SeekFrom::Start(place))?;
    handle.write_all(&xxh3_64(&header).to_le_bytes())
}

/// Absolute position of the checksums in a file with this header.
fn checksum_place(header: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        tensors: BTreeMap<String, Descriptor>,
    }
    #[derive(serde::Deserialize)]
    struct Descriptor {
        data_offsets: (u64, u64),
    }
    let metadata: Metadata = ciborium::de::from_reader(&header[10..]).ok()?;
    let start = metadata.tensors.get(CHECKSUMS)?.data_offsets.0;
    Some((header.len() as u64).next_multiple_of(256) + start)
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

/// Reads the record back the way the runtime does.
fn check(output: &Output, plan: &Plan) -> Result<(), ConvertError> {
    let specs: Vec<WeightSpec> = plan.weights.iter().map(|w| w.spec.clone()).collect();
    Record::open(output.part())
        .and_then(|record| record.check_weights(&specs))
        .map_err(|error| ConvertError::Write {
            path: output.path().to_owned(),
            reason: format!("the written record does not read back: {error}"),
        })
}

fn weight_snapshot(weight: PlannedWeight, id: u64, job: Rc<Job>) -> TensorSnapshot {
    let (dtype, shape) = match weight.spec.storage {
        Storage::Packed { .. } => (DType::U8, vec![weight.bytes]),
        Storage::Dense { cols } => (
            DType::F32,
            std::iter::once(weight.spec.rows()).chain(cols).collect(),
        ),
    };
    let path = weight.spec.name.split('.').map(str::to_owned).collect();
    let tensor_shape = Shape::from(shape.clone());
    let data = move || {
        let bytes = job.bytes(&weight).map_err(|error| {
            let message = error.to_string();
            job.error.replace(Some(error));
            TensorSnapshotError::DataError(message)
        })?;
        Ok(TensorData::from_bytes_vec(bytes, shape.clone(), dtype))
    };
    TensorSnapshot::from_closure(
        Rc::new(data),
        dtype,
        tensor_shape,
        path,
        Vec::new(),
        // Counted, not drawn: the same checkpoint gives the same file.
        ParamId::from(id),
    )
}

/// The last tensor: room for the header's hash, then the hashes of the others by name.
fn checksum_snapshot(weights: usize, job: Rc<Job>) -> TensorSnapshot {
    let len = 8 * (weights + 1);
    let data = move || {
        let hashes = job.hashes.borrow();
        let bytes: Vec<u8> = std::iter::once(0)
            .chain(hashes.values().copied())
            .flat_map(u64::to_le_bytes)
            .collect();
        Ok(TensorData::from_bytes_vec(bytes, vec![len], DType::U8))
    };
    TensorSnapshot::from_closure(
        Rc::new(data),
        DType::U8,
        Shape::from(vec![len]),
        vec![CHECKSUMS.to_owned()],
        Vec::new(),
        ParamId::from(0),
    )
}

impl Job {
    /// The bytes of a weight as the record stores them; keeps hash and report.
    fn bytes(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        (self.progress)(&spec.name, 0);
        let (bytes, stats) = match (spec.storage, weight.format) {
            (Storage::Packed { cols }, Some(format)) => self.pack(weight, format, cols)?,
            _ => (self.dense(weight)?, PackStats::default()),
        };
        self.hashes
            .borrow_mut()
            .insert(spec.name.clone(), xxh3_64(&bytes));
        self.reports
            .borrow_mut()
            .push(self.report(weight, bytes.len(), &stats));
        // Every tensor is read once: what it took of the memory is free again.
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
                let packed = pack_chunk(checkpoint, weight, shape, rows);
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
            relative_error: stats.relative_error(),
            lost: stats.lost,
        }
    }
}

fn pack_chunk(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    shape: MatrixShape,
    rows: Range<usize>,
) -> Packed {
    let mut values = Vec::with_capacity(rows.len() * shape.cols);
    read_rows(checkpoint, weight, rows.clone(), &mut values)?;
    let mut bytes = Vec::new();
    let stats = pack_rows(shape, &values, &mut bytes).map_err(|error| ConvertError::Pack {
        weight: weight.spec.name.clone(),
        reason: format!("rows {} to {}: {error}", rows.start, rows.end),
    })?;
    Ok((bytes, stats))
}
