//! Packing of weights and writing of the record, one weight at a time.

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
use crate::source::{Checkpoint, some_of};

/// Values that one task reads and packs at a time; a few such chunks are in memory at once.
const CHUNK: usize = 1 << 20;

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
    progress: Progress,
    hashes: RefCell<BTreeMap<String, u64>>,
    reports: RefCell<Vec<TensorReport>>,
    error: RefCell<Option<ConvertError>>,
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

/// Writes the hash of the header into the first checksum.
fn seal(path: &Path) -> std::io::Result<()> {
    let mut handle = File::options().read(true).write(true).open(path)?;
    let mut preamble = [0; 10];
    handle.read_exact(&mut preamble)?;
    let len = u32::from_le_bytes([preamble[6], preamble[7], preamble[8], preamble[9]]);
    let mut header = preamble.to_vec();
    (&mut handle).take(len.into()).read_to_end(&mut header)?;
    // The header must be complete before it can be hashed, so the position of the checksums is
    // found by parsing it as a reader does.
    let place = checksum_place(&header).ok_or_else(|| {
        std::io::Error::other("the header that was just written cannot be read back")
    })?;
    handle.seek(SeekFrom::Start(place))?;
    handle.write_all(&xxh3_64(&header).to_le_bytes())
}

/// Returns the absolute position of the checksums in a file with this header.
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

/// Warns once about values that are too small for their format. Answers change if a later operation
/// scales such values up again.
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

/// Reads the record back as the runtime does.
fn check(output: &Output, plan: &Plan) -> Result<(), ConvertError> {
    let specs: Vec<WeightSpec> = plan.weights.iter().map(|w| w.spec.clone()).collect();
    Record::open(output.part())
        .and_then(|record| record.check_weights(&specs))
        .map_err(|error| ConvertError::Write {
            path: output.path().to_owned(),
            reason: format!("the written record cannot be read back: {error}"),
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
        // Sequential, not random: the same checkpoint gives the same file.
        ParamId::from(id),
    )
}

/// Creates the last tensor: space for the hash of the header, then the hashes of the weights in
/// order of their names.
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
    /// Returns the bytes of a weight as stored in the record, and keeps its hash and report.
    fn bytes(&self, weight: &PlannedWeight) -> Result<Vec<u8>, ConvertError> {
        let spec = &weight.spec;
        (self.progress)(&spec.name, 0);
        let (bytes, stats) = match (spec.storage, weight.format) {
            (Storage::Packed { cols }, Some(format)) => self.pack(spec, format, cols)?,
            _ => (self.dense(spec)?, PackStats::default()),
        };
        self.hashes
            .borrow_mut()
            .insert(spec.name.clone(), xxh3_64(&bytes));
        self.reports
            .borrow_mut()
            .push(self.report(weight, bytes.len(), &stats));
        // Every tensor is read once, so its pages can be released.
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
        // Works in batches to limit the memory of packed chunks that wait to be joined.
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

/// Reads rows of a weight across the tensors that it is stacked from.
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
