//! Writes records, one weight at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::module::ParamId;
use burn::tensor::{DType, Shape, TensorData};
use burn_store::{BurnpackWriter, TensorSnapshot, TensorSnapshotError};
use edge_lmm_models::weights::WeightSpec;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::output::{Output, OutputError};
use crate::reader::{ALIGNMENT, PREAMBLE, Record};
use crate::schema::{CHECKSUMS, INFO_KEY, RecordInfo, TEMPLATE_KEY, TOKENIZER_KEY};

/// Contents of a record besides its weights.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    /// Family, configuration and formats.
    pub info: &'a RecordInfo,
    /// The text of `tokenizer.json`.
    pub tokenizer: &'a str,
    /// The chat template.
    pub template: Option<&'a str>,
}

/// Error of writing a record; `E` is the error of a weight.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E: std::error::Error + 'static> {
    /// The bytes of a weight cannot be had.
    #[error(transparent)]
    Weight(E),
    /// The file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The record cannot be written.
    #[error("cannot write {path}: {reason}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Shared by the tensors of one record.
struct Job<E, F> {
    bytes: F,
    hashes: RefCell<BTreeMap<String, u64>>,
    error: RefCell<Option<E>>,
}

/// Writes a record to `output` and returns the size of the file in bytes.
///
/// `bytes` gives the bytes of a weight by its index in `weights`. It is called once for each, in
/// their order, so only one weight is in memory at a time. The finished file is read back as
/// [`Record::open`] does and compared with `weights` before it gets its name.
///
/// # Errors
/// If `bytes` fails, or the file cannot be written; nothing is left behind.
pub fn write_record<E, F>(
    output: Output,
    description: Description<'_>,
    weights: &[WeightSpec],
    bytes: F,
) -> Result<u64, WriteError<E>>
where
    E: std::error::Error + 'static,
    F: Fn(usize) -> Result<Vec<u8>, E> + 'static,
{
    let unwritable = |reason: String| WriteError::Record {
        path: output.path().to_owned(),
        reason,
    };
    let info = serde_json::to_string(description.info).map_err(|e| unwritable(e.to_string()))?;
    let job = Rc::new(Job {
        bytes,
        hashes: RefCell::new(BTreeMap::new()),
        error: RefCell::new(None),
    });
    let mut snapshots: Vec<TensorSnapshot> = weights
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let (dtype, shape) = description.info.stored(spec);
            weight_snapshot(job.clone(), index, &spec.name, dtype, shape)
        })
        .collect();
    snapshots.push(checksum_snapshot(job.clone(), weights.len()));
    let mut writer = BurnpackWriter::new(snapshots)
        .with_metadata(INFO_KEY, &info)
        .with_metadata(TOKENIZER_KEY, description.tokenizer);
    if let Some(template) = description.template {
        writer = writer.with_metadata(TEMPLATE_KEY, template);
    }
    let written = writer.write_to_file(output.part());
    if let Some(error) = job.error.take() {
        return Err(WriteError::Weight(error));
    }
    written.map_err(|e| unwritable(e.to_string()))?;
    seal(output.part()).map_err(|error| output.io(error))?;
    Record::open(output.part())
        .and_then(|record| record.check_weights(weights))
        .map_err(|error| unwritable(format!("the written record does not read back: {error}")))?;
    Ok(output.finish()?)
}

fn weight_snapshot<E, F>(
    job: Rc<Job<E, F>>,
    index: usize,
    name: &str,
    dtype: DType,
    shape: Vec<usize>,
) -> TensorSnapshot
where
    E: std::error::Error + 'static,
    F: Fn(usize) -> Result<Vec<u8>, E> + 'static,
{
    let path = name.split('.').map(str::to_owned).collect();
    let tensor_shape = Shape::from(shape.clone());
    let name = name.to_owned();
    let data = move || {
        let bytes = (job.bytes)(index).map_err(|error| {
            let message = error.to_string();
            job.error.replace(Some(error));
            TensorSnapshotError::DataError(message)
        })?;
        let hash = xxh3_64(&bytes);
        job.hashes.borrow_mut().insert(name.clone(), hash);
        Ok(TensorData::from_bytes_vec(bytes, shape.clone(), dtype))
    };
    TensorSnapshot::from_closure(
        Rc::new(data),
        dtype,
        tensor_shape,
        path,
        Vec::new(),
        // Counted, not drawn: the same weights give the same file.
        ParamId::from(index as u64 + 1),
    )
}

/// Creates the last tensor: space for the header's hash, then the hashes of the others by name.
fn checksum_snapshot<E: 'static, F: 'static>(job: Rc<Job<E, F>>, weights: usize) -> TensorSnapshot {
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

/// Puts the header's own hash where the first checksum is.
fn seal(path: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut preamble = [0; PREAMBLE];
    file.read_exact(&mut preamble)?;
    let [.., l0, l1, l2, l3] = preamble;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    let mut header = preamble.to_vec();
    (&mut file).take(len.into()).read_to_end(&mut header)?;
    let place = checksum_place(&header)
        .ok_or_else(|| io::Error::other("the header that was just written cannot be read back"))?;
    file.seek(SeekFrom::Start(place))?;
    file.write_all(&xxh3_64(&header).to_le_bytes())
}

/// Returns the absolute position of the checksums in a file with this header.
fn checksum_place(header: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Metadata {
        tensors: BTreeMap<String, Descriptor>,
    }
    #[derive(Deserialize)]
    struct Descriptor {
        data_offsets: (u64, u64),
    }
    let metadata: Metadata = ciborium::de::from_reader(&header[PREAMBLE..]).ok()?;
    let start = metadata.tensors.get(CHECKSUMS)?.data_offsets.0;
    Some((header.len() as u64).next_multiple_of(ALIGNMENT as u64) + start)
}
