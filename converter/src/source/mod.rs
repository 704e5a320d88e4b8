//! Reading of checkpoints.
//!
//! [`Checkpoint::open`] accepts a Hugging Face directory, a `.safetensors` file beside its JSON
//! files, or a language-model `.gguf` with its `mmproj`. It presents all of them in one normal
//! form: the JSON files, and the tensors under the names of the family's Hugging Face checkpoint.
//! Weights stay in the mapped file until their rows are read.
//!
//! Source files are not trusted: headers are checked as a whole before anything is read through
//! them, and a damaged or hostile file gives a [`SourceError`].

mod adapter;
mod added_tokens;
mod chat;
mod decode;
mod dequantize;
mod error;
mod file;
pub mod gguf;
mod hub;
mod json;
mod map;
mod processor;
mod quantized;
mod random;
mod safetensors;
mod tokenizer_files;
mod tokenizer_json;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

pub use error::SourceError;
pub(crate) use error::some_of;
pub use file::SourceFile;

use error::Result;
use random::Random;
use view::View;

/// A checkpoint in normal form, independent of its file format.
#[derive(Debug)]
pub struct Checkpoint {
    /// `config.json` in the hub's layout; synthesized for a GGUF file.
    pub config: Value,
    /// `generation_config.json`, if present.
    pub generation_config: Option<Value>,
    /// Configuration of the image processor or feature extractor, `None` for a text model:
    /// `preprocessor_config.json`, or a section of `processor_config.json`.
    pub preprocessor_config: Option<Value>,
    /// Configuration of a separate video processor: `video_preprocessor_config.json`, or a section
    /// of `processor_config.json`.
    pub video_preprocessor_config: Option<Value>,
    /// The text of `tokenizer.json`; rebuilt if the source has the vocabulary in another form.
    pub tokenizer: String,
    /// The chat template (Jinja), if present.
    pub chat_template: Option<String>,
    /// All files that were read, weights first.
    pub files: Vec<SourceFile>,
    tensors: BTreeMap<String, Tensor>,
    /// Names of the tensors that adapters change.
    adapted: BTreeSet<String>,
}

/// Type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the source, for example `BF16` or `Q4_K`. The types of a tensor assembled
    /// from several are joined by `+` if they differ.
    pub dtype: String,
    /// Shape, outermost dimension first, as in PyTorch.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Returns the rows of the tensor as a matrix: its first dimension, or 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Returns the elements of one row: the product of all dimensions but the first.
    pub fn row_len(&self) -> usize {
        product(self.shape.get(1..).unwrap_or_default())
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        product(&self.shape)
    }
}

/// Multiplies dimensions. The product cannot overflow for a tensor of a [`Checkpoint`], whose size
/// was checked against its file, unless one dimension is zero.
fn product(dims: &[usize]) -> usize {
    if dims.contains(&0) {
        return 0;
    }
    dims.iter()
        .fold(1, |product, &dim| product.saturating_mul(dim))
}

/// A tensor with the location of its values.
#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    view: View,
}

impl Checkpoint {
    /// Opens a checkpoint: a Hugging Face directory, a single `.safetensors` file beside its JSON
    /// files, or a language-model `.gguf`, whose vision tower is in the `mmproj` file.
    ///
    /// # Errors
    /// If a file is missing, damaged, unsupported or contradicts another.
    pub fn open(path: &Path, mmproj: Option<&Path>) -> Result<Self> {
        if is_gguf_file(path)? {
            return gguf::open(path, mmproj);
        }
        let is_weights = path.extension().is_some_and(|e| e == "safetensors");
        if !path.is_dir() && !is_weights {
            return Err(SourceError::NotACheckpoint {
                path: path.to_path_buf(),
                found: "a file of another kind".into(),
                expected: "a Hugging Face directory, a .safetensors file or a .gguf file".into(),
            });
        }
        match mmproj {
            None => hub::open(path),
            Some(mmproj) => Err(SourceError::NotACheckpoint {
                path: mmproj.to_path_buf(),
                found: format!("a projector file for {}, which is not GGUF", path.display()),
                expected: "no --mmproj: a Hugging Face checkpoint includes its vision tower".into(),
            }),
        }
    }

    /// Opens the JSON files of a Hugging Face directory, which need not have weights. The checkpoint
    /// has no tensors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_without_weights(directory: &Path) -> Result<Self> {
        hub::open_without_weights(directory)
    }

    /// Adds a tensor of random values between `center - spread` and `center + spread`.
    pub(crate) fn add_random(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        seed: u64,
        center: f32,
        spread: f32,
    ) {
        let info = TensorInfo {
            dtype: "random".into(),
            shape,
        };
        let view = View::Random(Random::new(seed, name, center, spread));
        self.tensors.insert(name.to_owned(), Tensor { info, view });
    }

    /// Iterates over the tensors with their names, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), &tensor.info))
    }

    /// Returns `true` if an adapter changes the tensor.
    pub fn is_adapted(&self, name: &str) -> bool {
        self.adapted.contains(name)
    }

    /// Returns type and shape of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    /// Checks that a tensor can be read as f32 without reading it.
    ///
    /// # Errors
    /// If there is no such tensor, or its type cannot be converted to f32.
    pub fn check_readable(&self, name: &str) -> Result<()> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.missing_tensor(name))?;
        tensor
            .view
            .check_readable()
            .map_err(|unreadable| unreadable.into_error(name))
    }

    /// Iterates over the names of tensors that start with `prefix`, in order.
    pub fn names_from<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors
            .range(prefix.to_owned()..)
            .map(|(name, _)| name.as_str())
            .take_while(move |name| name.starts_with(prefix))
    }

    /// Appends `rows` of a tensor, as a matrix `[shape[0], product of the rest]`, to `out` as f32.
    /// Only the pages of these rows are read; `out` grows by `rows.len() * row_len`.
    ///
    /// # Errors
    /// If there is no such tensor, it has fewer rows, or its type cannot be converted to f32. `out`
    /// is then unchanged.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(self.missing_tensor(name));
        };
        let available = tensor.info.rows();
        if rows.start > rows.end || rows.end > available {
            return Err(SourceError::Rows {
                tensor: name.into(),
                rows: available,
                range: rows,
            });
        }
        let row_len = tensor.info.row_len();
        let before = out.len();
        tensor
            .view
            .read(rows.start * row_len..rows.end * row_len, out)
            .map_err(|unreadable| {
                out.truncate(before);
                unreadable.into_error(name)
            })
    }

    /// Reads columns of a tensor: the elements of the first row, then those of the next one.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub(crate) fn read_columns(&self, name: &str, columns: Range<usize>) -> Result<Vec<f32>> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(self.missing_tensor(name));
        };
        let row_len = tensor.info.row_len();
        let mut values = Vec::with_capacity(tensor.info.rows() * columns.len());
        for row in 0..tensor.info.rows() {
            let first = row * row_len;
            let elements = first + columns.start..first + columns.end;
            let read = tensor.view.read(elements, &mut values);
            read.map_err(|unreadable| unreadable.into_error(name))?;
        }
        Ok(values)
    }

    /// Returns the name of the first weight file, for messages.
    pub(crate) fn weights_file(&self) -> String {
        self.files
            .first()
            .map_or_else(String::new, |file| file.name.clone())
    }

    fn missing_tensor(&self, name: &str) -> SourceError {
        let last_part = name.rsplit('.').nth(1).unwrap_or(name);
        let similar: Vec<&str> = self
            .tensors
            .keys()
            .map(String::as_str)
            .filter(|key| key.rsplit('.').nth(1).unwrap_or(key) == last_part)
            .collect();
        SourceError::MissingTensor {
            file: self.weights_file(),
            tensor: name.into(),
            needed_for: if similar.is_empty() {
                format!(
                    "none of the {} tensors has a similar name",
                    self.tensors.len()
                )
            } else {
                format!("there is {}", error::some_of(&similar))
            },
        }
    }
}

/// Returns `true` if `path` is a GGUF file, by its first bytes or by its name, so that a damaged
/// one is reported as such.
fn is_gguf_file(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let named = path
        .extension()
        .is_some_and(|extension| extension == "gguf");
    Ok(named || gguf::is_gguf(&map::open(path)?))
}
