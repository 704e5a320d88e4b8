//! Locations of tensor values and their assembly.
//!
//! GGUF files store some tensors split, or with rows in a different order than the Hugging Face
//! checkpoint. A [`View`] undoes this while reading: it maps a range of elements in the normal form
//! to ranges of stored elements, so that reading a few rows of a large tensor touches only those
//! rows.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::adapter::LowRank;
use super::decode::Decoder;
use super::dequantize::Quantized;
use super::error::SourceError;
use super::random::Random;
use edge_lmm_record::FileMap;

/// A tensor stored in a file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    map: Arc<FileMap>,
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

impl Unreadable {
    /// Returns the error for the tensor `tensor` of the normal form.
    pub(super) fn into_error(self, tensor: &str) -> SourceError {
        SourceError::UnsupportedType {
            file: self.file,
            tensor: tensor.into(),
            found: self.dtype,
            supported: self.supported.into(),
        }
    }
}

impl Stored {
    /// Creates a tensor in `bytes` of a mapped file. `decoder` is `None` for a type that can be
    /// listed but not read; `supported` then lists the readable types. Returns `None` if the file
    /// has no such bytes.
    pub(super) fn new(
        (map, file): (&Arc<FileMap>, &Arc<str>),
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

    /// Returns the name of the element type.
    pub(super) fn dtype(&self) -> &str {
        &self.dtype
    }

    fn decoder(&self) -> Result<Decoder, Unreadable> {
        self.decoder.ok_or_else(|| Unreadable {
            file: self.file.to_string(),
            dtype: self.dtype.clone(),
            supported: self.supported,
        })
    }

    /// Returns the stored bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map[self.bytes.clone()]
    }

    /// Returns a word of a tensor of 32-bit integers.
    pub(super) fn word(&self, index: usize) -> u32 {
        let (words, _) = self.bytes().as_chunks::<4>();
        u32::from_le_bytes(words[index])
    }

    /// Returns the values of a tensor of 64-bit or 32-bit integers; none for other types.
    pub(super) fn integers(&self) -> Vec<u64> {
        match &*self.dtype {
            "I64" | "U64" => {
                let (words, _) = self.bytes().as_chunks::<8>();
                words.iter().map(|&word| u64::from_le_bytes(word)).collect()
            }
            "I32" | "U32" => {
                let (words, _) = self.bytes().as_chunks::<4>();
                let value = |&word: &[u8; 4]| u64::from(u32::from_le_bytes(word));
                words.iter().map(value).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns an element of a tensor of a float type; 0 for other types.
    pub(super) fn value(&self, index: usize) -> f32 {
        let bytes = self.bytes();
        match self.decoder {
            Some(Decoder::F32) => f32::from_le_bytes(bytes.as_chunks::<4>().0[index]),
            Some(Decoder::F16) => f16::from_le_bytes(bytes.as_chunks::<2>().0[index]).to_f32(),
            Some(Decoder::Bf16) => bf16::from_le_bytes(bytes.as_chunks::<2>().0[index]).to_f32(),
            _ => 0.0,
        }
    }

    /// Returns all elements of a tensor of a float type.
    pub(super) fn values(&self) -> Vec<f32> {
        let size = match self.decoder {
            Some(Decoder::F32) => 4,
            _ => 2,
        };
        (0..self.bytes.len() / size)
            .map(|i| self.value(i))
            .collect()
    }

    /// Appends the elements `range`, which must lie inside the tensor, as f32.
    pub(super) fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<(), Unreadable> {
        let decoder = self.decoder()?;
        decoder.decode(&self.map[self.bytes.clone()], range, out);
        Ok(())
    }
}

/// Place of the value heads of a delta rule in a tensor.
///
/// llama.cpp orders them by their number within the group of a key head, the Hugging Face model by
/// the group: head `group * per_group + member` of the original is head `member * groups + group` of
/// the stored tensor. A row of a matrix whose columns belong to value heads has all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    /// Elements before those of the first value head.
    pub(super) first: usize,
    /// Elements of a value head.
    pub(super) block: usize,
    /// Key heads.
    pub(super) groups: usize,
    /// Value heads of a key head.
    pub(super) per_group: usize,
}

impl Tiles {
    /// Returns the number of value heads.
    pub(super) fn heads(&self) -> usize {
        self.groups * self.per_group
    }

    /// Returns the stored place of a block.
    fn place(&self, block: usize) -> usize {
        let head = block % self.heads();
        let (group, member) = (head / self.per_group, head % self.per_group);
        block - head + member * self.groups + group
    }
}

/// A tensor of the normal form in terms of stored tensors.
#[derive(Debug)]
pub(super) enum View {
    /// A tensor stored unchanged.
    Whole(Stored),
    /// Parts of `elements` elements each, stacked along the rows (a fused projection stored as its
    /// parts).
    Stacked {
        /// From top to bottom, all of the same size.
        parts: Vec<Stored>,
        /// Elements of a part.
        elements: usize,
    },
    /// Chunks of `chunk` elements taken from the parts in turn (a convolution over time stored as
    /// one convolution per frame).
    Interleaved {
        /// In reading order, all of equal size.
        parts: Vec<Stored>,
        /// Elements per turn.
        chunk: usize,
    },
    /// Rows that llama.cpp permuted: it rotates neighboring pairs of a head, the Hugging Face model
    /// its two halves, so row `2 j + i` of a stored head is row `i * head / 2 + j` of the original.
    Unpermuted {
        /// The permuted tensor.
        stored: Stored,
        /// Rows per head, even.
        head: usize,
        /// Elements of a row.
        row_len: usize,
    },
    /// Rows of pixels with their channels, stored as one plane per channel.
    ChannelsLast {
        /// The stored tensor.
        stored: Stored,
        /// Channels of a pixel.
        channels: usize,
        /// Elements of a row.
        row_len: usize,
    },
    /// Random values.
    Random(Random),
    /// A quantized matrix, which is dequantized while it is read.
    Quantized {
        /// The matrix.
        matrix: Box<dyn Quantized>,
        /// Elements of a row.
        columns: usize,
    },
    /// Values of several tensors.
    Shared(Arc<View>),
    /// A matrix with the update of an adapter.
    Adapted {
        /// The matrix of the checkpoint.
        base: Box<View>,
        /// The update.
        update: LowRank,
    },
    /// Values that are stored with a number added to them (the scales of Gemma's norms, which
    /// llama.cpp stores plus 1).
    Shifted {
        /// The stored tensor.
        stored: Stored,
        /// The number that restores the original values when it is added.
        by: f32,
    },
    /// Value heads of a delta rule, stored in the order of llama.cpp.
    Untiled {
        /// The stored tensor.
        stored: Stored,
        /// Their place.
        tiles: Tiles,
    },
    /// Logarithms of values that are stored as negated exponentials (the decay rates of a delta
    /// rule).
    NegatedExponential(Box<View>),
    /// More rows than are stored; the additional ones repeat one of them (an embedding extended by
    /// a token).
    Extended {
        /// The stored rows.
        stored: Stored,
        /// Number of stored rows.
        rows: usize,
        /// The row that the additional ones repeat.
        filler: usize,
        /// Elements of a row.
        row_len: usize,
    },
}

impl View {
    /// Checks that every part can be converted to f32.
    pub(super) fn check_readable(&self) -> Result<(), Unreadable> {
        match self {
            Self::Stacked { parts, .. } | Self::Interleaved { parts, .. } => {
                parts.iter().try_for_each(|part| part.decoder().map(|_| ()))
            }
            Self::Random(_) | Self::Quantized { .. } => Ok(()),
            Self::Shared(view) => view.check_readable(),
            Self::Adapted { base, .. } => base.check_readable(),
            Self::NegatedExponential(view) => view.check_readable(),
            Self::Whole(stored)
            | Self::Unpermuted { stored, .. }
            | Self::ChannelsLast { stored, .. }
            | Self::Shifted { stored, .. }
            | Self::Untiled { stored, .. }
            | Self::Extended { stored, .. } => stored.decoder().map(|_| ()),
        }
    }

    /// Appends the elements `range`, which must lie inside the tensor, as f32.
    pub(super) fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<(), Unreadable> {
        match self {
            Self::Whole(stored) => stored.read(range, out),
            Self::Random(random) => {
                random.read(range, out);
                Ok(())
            }
            Self::Quantized { matrix, columns } => {
                let mut at = range.start;
                while at < range.end {
                    let (row, column) = (at / columns, at % columns);
                    let length = (columns - column).min(range.end - at);
                    matrix.read(row, column..column + length, out);
                    at += length;
                }
                Ok(())
            }
            Self::ChannelsLast {
                stored,
                channels,
                row_len,
            } => {
                let (pixels, mut planes) = (row_len / channels, Vec::new());
                let mut at = range.start;
                while at < range.end {
                    let (first, inside) = (at / row_len * row_len, at % row_len);
                    let length = (row_len - inside).min(range.end - at);
                    planes.clear();
                    stored.read(first..first + row_len, &mut planes)?;
                    let element = |i| planes[i % channels * pixels + i / channels];
                    out.extend((inside..inside + length).map(element));
                    at += length;
                }
                Ok(())
            }
            Self::Shared(view) => view.read(range, out),
            Self::Adapted { base, update } => update.read(base, range, out),
            Self::Shifted { stored, by } => {
                let before = out.len();
                stored.read(range, out)?;
                out[before..].iter_mut().for_each(|value| *value += by);
                Ok(())
            }
            Self::NegatedExponential(view) => {
                let before = out.len();
                view.read(range, out)?;
                let stored = out[before..].iter_mut();
                stored.for_each(|value| *value = (-*value).ln());
                Ok(())
            }
            Self::Untiled { stored, tiles } => {
                let first = tiles.first;
                stored.read(range.start.min(first)..range.end.min(first), out)?;
                let blocks = range.start.max(first) - first..range.end.max(first) - first;
                read_blocks(blocks, tiles.block, out, |block| {
                    (stored, first, tiles.place(block))
                })
            }
            Self::Stacked { parts, elements } => {
                read_chunks(range, *elements, out, |part| (&parts[part], 0))
            }
            Self::Interleaved { parts, chunk } => read_chunks(range, *chunk, out, |turn| {
                (&parts[turn % parts.len()], turn / parts.len())
            }),
            Self::Unpermuted {
                stored,
                head,
                row_len,
            } => read_chunks(range, *row_len, out, |row| {
                let (first, row) = (row / head * head, row % head);
                let (half, pair) = (row / (head / 2), row % (head / 2));
                (stored, first + 2 * pair + half)
            }),
            Self::Extended {
                stored,
                rows,
                filler,
                row_len,
            } => read_chunks(range, *row_len, out, |row| {
                (stored, if row < *rows { row } else { *filler })
            }),
        }
    }
}

/// Reads a range chunk by chunk. `locate` maps the index of a chunk in the normal form to its
/// stored tensor and the index of the chunk there.
fn read_chunks<'a>(
    range: Range<usize>,
    chunk: usize,
    out: &mut Vec<f32>,
    locate: impl Fn(usize) -> (&'a Stored, usize),
) -> Result<(), Unreadable> {
    read_blocks(range, chunk, out, |number| {
        let (stored, place) = locate(number);
        (stored, 0, place)
    })
}

/// Reads a range chunk by chunk as [`read_chunks`] does. `locate` also returns the number of elements
/// before the first chunk of the stored tensor.
fn read_blocks<'a>(
    range: Range<usize>,
    chunk: usize,
    out: &mut Vec<f32>,
    locate: impl Fn(usize) -> (&'a Stored, usize, usize),
) -> Result<(), Unreadable> {
    let mut at = range.start;
    while at < range.end {
        let (number, inside) = (at / chunk, at % chunk);
        let length = (chunk - inside).min(range.end - at);
        let (stored, first, place) = locate(number);
        let start = first + place * chunk + inside;
        stored.read(start..start + length, out)?;
        at += length;
    }
    Ok(())
}
