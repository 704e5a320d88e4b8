//! Export of a record as a Hugging Face folder of f32 weights, for other programs.
//!
//! The tensors have the names and the values of the checkpoint, as far as the formats of the record
//! keep them. Convolutions are written as matrices: a row for each output.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use edge_lmm::Cpu;
use edge_lmm_kernels::format::Matrix;
use edge_lmm_models::families::Registry;
use edge_lmm_models::weights::{Storage, WeightSpec};
use edge_lmm_ops::MatrixShape;
use edge_lmm_record::{Record, RecordError};
use safetensors::tensor::{Dtype, SafeTensorError, View};
use serde_json::Value;

/// The error of an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file exists already.
    #[error("{path} exists, expected a folder without a model: choose another one or remove it")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The weights cannot be written.
    #[error("cannot write {path}: {source}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
}

/// Writes the weights, configuration, tokenizer and template of a record to `folder`, which is
/// created if it does not exist. One weight at a time is in memory as f32.
///
/// # Errors
/// If the folder has a model already, or something cannot be read or written.
pub fn export(record: &Record, folder: &Path) -> Result<(), ExportError> {
    let (_, specs) = record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
    std::fs::create_dir_all(folder).map_err(|source| ExportError::Io {
        path: folder.to_owned(),
        source,
    })?;
    let path = folder.join("model.safetensors");
    if path.exists() {
        return Err(ExportError::Exists { path });
    }
    write_files(record, folder)?;
    let tensors = specs.iter().flat_map(|spec| tensors(record, spec));
    let format = [("format".to_owned(), "pt".to_owned())];
    safetensors::serialize_to_file(tensors, Some(format.into()), &path)
        .map_err(|source| ExportError::Weights { path, source })
}

fn write_files(record: &Record, folder: &Path) -> Result<(), ExportError> {
    let files = &record.info().files;
    let json = |value: &Value| format!("{value:#}\n");
    let optional = [
        ("preprocessor_config.json", files.preprocessor.as_ref()),
        (
            "video_preprocessor_config.json",
            files.video_preprocessor.as_ref(),
        ),
        ("generation_config.json", files.generation.as_ref()),
    ];
    let mut texts = vec![
        ("config.json", json(&files.config)),
        ("tokenizer.json", record.tokenizer().to_owned()),
    ];
    texts.extend(
        optional
            .iter()
            .filter_map(|(name, value)| Some((*name, json((*value)?)))),
    );
    let template = record.template().map(str::to_owned);
    texts.extend(template.map(|template| ("chat_template.jinja", template)));
    for (name, text) in texts {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| ExportError::Io { path, source })?;
    }
    Ok(())
}

/// Returns the tensors of the checkpoint that a weight consists of.
fn tensors<'a>(
    record: &'a Record,
    spec: &'a WeightSpec,
) -> impl Iterator<Item = (String, Rows<'a>)> {
    let mut first = 0;
    spec.sources.iter().map(move |source| {
        let rows = first..first + source.rows.len();
        first = rows.end;
        let shape = match spec.storage {
            Storage::Dense { cols: None } => vec![rows.len()],
            _ if spec.transposed => vec![spec.cols(), rows.len()],
            _ => vec![rows.len(), spec.cols()],
        };
        let values = Rows {
            record,
            spec,
            rows,
            shape,
        };
        (source.tensor.clone(), values)
    })
}

/// Rows of a weight, decoded when they are written.
struct Rows<'a> {
    record: &'a Record,
    spec: &'a WeightSpec,
    rows: Range<usize>,
    shape: Vec<usize>,
}

impl Rows<'_> {
    fn values(&self) -> Vec<f32> {
        let (spec, cols) = (self.spec, self.spec.cols());
        // The skeleton has checked that the record has every weight in its right size.
        let bytes = self.record.bytes_of(&spec.name).unwrap_or_default();
        let format = self.record.info().formats.get(&spec.name);
        let mut values = vec![0.0; self.rows.len() * cols];
        if let (Storage::Packed { .. }, Some(format)) = (spec.storage, format) {
            let shape = MatrixShape::new(format.0, spec.rows(), cols);
            let matrix = Matrix::new(shape, bytes).expect("the size of a weight is checked");
            for (row, out) in self.rows.clone().zip(values.chunks_exact_mut(cols)) {
                matrix.row_into(row, out);
            }
        } else {
            let stored = bytes.chunks_exact(4).skip(self.rows.start * cols);
            for (value, stored) in values.iter_mut().zip(stored) {
                *value = f32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]);
            }
        }
        if spec.zero_centered {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        if spec.transposed {
            let columns = 0..cols;
            let column = |column| values.iter().skip(column).step_by(cols).copied();
            values = columns.flat_map(column).collect();
        }
        values
    }
}

impl View for Rows<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.values().into_iter().flat_map(f32::to_le_bytes);
        Cow::Owned(bytes.collect())
    }

    fn data_len(&self) -> usize {
        self.rows.len() * self.spec.cols() * size_of::<f32>()
    }
}
