//! Where the values of a tensor lie, and how they are put together.
//!
//! A GGUF file stores some tensors cut up or with rows in another order than the Hugging Face checkpoint. A
//! [`View`] undoes that while reading: it maps a range of elements in the normal form to ranges of stored
//! elements, so that a few rows of a large tensor never need more than those rows.

use std::ops::Range;
use std::sync::Arc;

use super::decode::Decoder;
use super::map::Map;

/// A tensor as it lies in a file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    map: Arc<Map>,
    file: Arc<str>,
    bytes: Range<usize>,
    dtype: String,
    decoder: Option<Decoder>,
    supported: &'static str,
}

/// A tensor type without a decoder.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) file: String,
    pub(super) dtype: String,
    pub(super) supported: &'static str,
}

impl Stored {
    /// A tensor in `bytes` of a mapped file. `decoder` is `None` for a type that can be listed but not read;
    /// `supported` then tells which could be. Returns `None` where the file has no such bytes.
    pub(super) fn new(
        (map, file): (&Arc<Map>, &Arc<str>),
        bytes: Range<usize>,
        dtype: String,
        decoder: Option<Decoder>,
        supported: &'static str,
    ) -> Option<Self> {
        map.get(bytes.clone())?;
        Some(Self {
            map: map.clone(),
            file: file.clone(),
            bytes,
            dtype,
            decoder,
            supported,
        })
    }

    /// Appends the elements `range` as f32.
    fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<(), Unreadable> {
        let Some(decoder) = self.decoder else {
            return Err(Unreadable {
                file: self.file.to_string(),
                dtype: self.dtype.clone(),
                supported: self.supported,
            });
        };
        decoder.decode(&self.map[self.bytes.clone()], range, out);
        Ok(())
    }
}

/// A tensor of the normal form in terms of stored tensors.
#[derive(Debug)]
pub(super) enum View {
    /// Stored as it is.
    Whole(Stored),
}

impl View {
    /// Appends the elements `range`, which must lie inside the tensor, as f32.
    pub(super) fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<(), Unreadable> {
        match self {
            Self::Whole(stored) => stored.read(range, out),
        }
    }
}
