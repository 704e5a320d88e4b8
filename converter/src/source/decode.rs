//! Decoding of stored elements to f32.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::gguf::blocks::BlockFormat;

/// The encoding of stored elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// IEEE single precision, little endian.
    F32,
    /// IEEE half precision, little endian.
    F16,
    /// The upper half of an IEEE single (bfloat16), little endian.
    Bf16,
    /// ggml blocks.
    Blocks(BlockFormat),
}

impl Decoder {
    /// Appends the elements `range` of the tensor in `bytes`. The caller must have checked that the
    /// tensor has these elements and that the length of `bytes` matches its shape and type.
    pub(super) fn decode(self, bytes: &[u8], range: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::F32 => each(bytes, range, out, f32::from_le_bytes),
            Self::F16 => halves(bytes, range, out),
            Self::Bf16 => each(bytes, range, out, |b| {
                f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
            }),
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

/// Decodes half-precision elements in batches, which is faster than one by one.
fn halves(bytes: &[u8], range: Range<usize>, out: &mut Vec<f32>) {
    const BATCH: usize = 1024;
    let (elements, _) = bytes.as_chunks::<2>();
    let mut batch = [f16::ZERO; BATCH];
    for stored in elements[range].chunks(BATCH) {
        let batch = &mut batch[..stored.len()];
        for (half, &bytes) in batch.iter_mut().zip(stored) {
            *half = f16::from_le_bytes(bytes);
        }
        let start = out.len();
        out.resize(start + stored.len(), 0.0);
        batch.convert_to_f32_slice(&mut out[start..]);
    }
}

/// Decodes elements of blocks; the range may start and end inside a block.
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
