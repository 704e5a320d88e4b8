//! Quantization and packing of one weight.

use std::ops::Range;
use std::sync::Mutex;

use edge_lmm_kernels::format::PANEL;
use edge_lmm_kernels::pack::{PackStats, pack_weighted};
use edge_lmm_kernels::pool;
use edge_lmm_kernels::{FormatError, Matrix};
use edge_lmm_ops::{Format, MatrixShape};

use crate::calibration::Rule;
use crate::plan::ConvertError;
use crate::planned_weight::PlannedWeight;
use crate::rows::read_rows;
use crate::source::Checkpoint;

/// Values that one task reads and packs at a time; a few such chunks are in memory at once.
const CHUNK: usize = 1 << 20;
/// Values that are rounded together; several copies of them are in memory.
const ROUNDED: usize = 1 << 24;

/// Packed bytes with the statistics of the packing.
pub(crate) type Packed = (Vec<u8>, PackStats);

/// Reads the values of a weight that is stored in single precision.
///
/// # Errors
/// If they cannot be read or are not finite.
pub(crate) fn dense(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
) -> Result<Vec<f32>, ConvertError> {
    let spec = &weight.spec;
    let mut values = Vec::with_capacity(spec.rows() * spec.cols());
    read_rows(checkpoint, weight, 0..spec.rows(), &mut values)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(ConvertError::Pack {
            weight: spec.name.clone(),
            reason: format!("value {at} is {}", values[at]),
        }),
        None => Ok(values),
    }
}

/// Packs a weight by a rule, or by rounding to the nearest values. `progress` receives the number of
/// bytes after each piece.
///
/// # Errors
/// If the weight cannot be read or a value cannot be packed.
pub(crate) fn pack(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    format: Format,
    rule: Option<&Rule>,
    progress: &dyn Fn(usize),
) -> Result<Packed, ConvertError> {
    match rule.filter(|rule| rule.has_products()) {
        Some(rule) => pack_rounded(checkpoint, weight, format, rule, progress),
        None => pack_nearest(checkpoint, weight, format, rule, progress),
    }
}

/// Reads and packs runs of panels on all threads.
fn pack_nearest(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    format: Format,
    rule: Option<&Rule>,
    progress: &dyn Fn(usize),
) -> Result<Packed, ConvertError> {
    let shape = MatrixShape::new(format, weight.spec.rows(), weight.spec.cols());
    let step = (CHUNK / shape.cols).next_multiple_of(PANEL).max(PANEL);
    let starts: Vec<usize> = (0..shape.rows).step_by(step).collect();
    let pool = pool::global();
    let mut bytes = Vec::with_capacity(shape.byte_len().unwrap_or_default());
    let mut stats = PackStats::default();
    // Works in batches to limit the memory of packed chunks that wait to be joined.
    for batch in starts.chunks(2 * pool.threads()) {
        let slots: Vec<Mutex<Option<Result<Packed, ConvertError>>>> =
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
            progress(chunk.len());
        }
    }
    Ok((bytes, stats))
}

fn pack_chunk(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    shape: MatrixShape,
    rows: Range<usize>,
    rule: Option<&Rule>,
) -> Result<Packed, ConvertError> {
    let mut values = Vec::with_capacity(rows.len() * shape.cols);
    read_rows(checkpoint, weight, rows.clone(), &mut values)?;
    let mut bytes = Vec::new();
    let mean_squares = rule.map(|rule| &*rule.mean_squares);
    let stats = pack_weighted(shape, &values, mean_squares, &mut bytes)
        .map_err(|error| unpackable(weight, &rows, &error))?;
    Ok((bytes, stats))
}

/// Packs runs of rows one after the other, each on all threads.
fn pack_rounded(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    format: Format,
    rule: &Rule,
    progress: &dyn Fn(usize),
) -> Result<Packed, ConvertError> {
    let (count, cols) = (weight.spec.rows(), weight.spec.cols());
    let step = (ROUNDED / cols).next_multiple_of(PANEL).max(PANEL);
    let (mut bytes, mut stats) = (Vec::new(), PackStats::default());
    for start in (0..count).step_by(step) {
        let rows = start..(start + step).min(count);
        let shape = MatrixShape::new(format, rows.len(), cols);
        let mut values = Vec::with_capacity(rows.len() * cols);
        read_rows(checkpoint, weight, rows.clone(), &mut values)?;
        let unpruned = (rule.unpruned()).map(|unpruned| {
            let mut values = Vec::new();
            read_rows(checkpoint, unpruned, rows.clone(), &mut values).map(|()| values)
        });
        let first = bytes.len();
        rule.pack(shape, &values, unpruned.transpose()?.as_deref(), &mut bytes)
            .map_err(|error| unpackable(weight, &rows, &error))?;
        let packed = Matrix::new(shape, &bytes[first..])
            .map_err(|error| unpackable(weight, &rows, &error))?;
        // An input that is hardly ever used may have a large error on purpose.
        stats += PackStats {
            lost: 0,
            ..PackStats::of_rows(&packed, &values)
        };
        progress(bytes.len() - first);
    }
    Ok((bytes, stats))
}

fn unpackable(weight: &PlannedWeight, rows: &Range<usize>, error: &FormatError) -> ConvertError {
    ConvertError::Pack {
        weight: weight.spec.name.clone(),
        reason: format!("rows {} to {}: {error}", rows.start, rows.end),
    }
}
