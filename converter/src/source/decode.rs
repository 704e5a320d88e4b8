//! Stored elements to f32.

use std::ops::Range;

use half::{bf16, f16};

use super::gguf::blocks::BlockFormat;

/// How elements are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// IEEE single precision, little endian.
    F32,
    /// IEEE half precision, little endian.
    F16,
    /// The upper half of an IEEE single, little endian.
    Bf16,
    /// Blocks of ggml.
    Blocks(BlockFormat),
}

impl Decoder {
    /// Appends the elements `range` of the tensor in `bytes`. The caller has checked that the tensor has these
    /// elements and that `bytes` is as long as its shape and type ask for.
    pub(super) fn decode(self, bytes: &[u8], range: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::F32 => each(bytes, range, out, f32::from_le_bytes),
            Self::F16 => each(bytes, range, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, range, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Blocks(format) => blocks(format, bytes, range, out),
        }
    }
}

/// Decodes elements of `N` bytes each.
fn each<const N: usize>(
    bytes: &[u8],
    range: Range<usize>,
    out: &mut Vec<f32>,
    decode: impl Fn([u8; N]) -> f32,
) {
    let (elements, _) = bytes.as_chunks::<N>();
    out.extend(elements[range].iter().map(|&element| decode(element)));
}

/// Decodes elements of blocks; the range may begin and end inside one.
fn blocks(format: BlockFormat, bytes: &[u8], range: Range<usize>, out: &mut Vec<f32>) {
    if range.is_empty() {
        return;
    }
    let length = format.len();
    let mut values = [0.0; BlockFormat::MAX_LEN];
    let values = &mut values[..length];
    for block in range.start / length..range.end.div_ceil(length) {
        let stored = &bytes[block * format.bytes()..(block + 1) * format.bytes()];
        format.decode(stored, values);
        let first = block * length;
        let from = range.start.saturating_sub(first);
        let to = (range.end - first).min(length);
        out.extend_from_slice(&values[from..to]);
    }
}
