//! Multiply-accumulates and bytes of the operations, counted from their shapes.
//!
//! The conventions are those of a roofline model:
//! - A multiply-accumulate (MAC) is one product that is added to a sum. Only products of matrices
//!   count: those with weights, and of attention the scores (queries and keys) and the values
//!   (weights and values), for the keys that the mask shows to each query. Norms, activations,
//!   softmax and rotations count as 0.
//! - An operation reads each of its operands once and writes its result once. Weights count with
//!   their packed size, activations with 4 bytes per element, keys and values in a cache with the
//!   bytes that the cache uses for them. Intermediate results of a fused operation, such as hidden
//!   activations of a feed-forward part and attention scores, stay in caches and do not count.
//!
//! Operations of burn that the models use in between, such as concatenations, are not counted.

use std::ops::AddAssign;

use edge_lmm_kernels::attention::{Heads, Mask};
use edge_lmm_kernels::format::MatrixShape;
use edge_lmm_kernels::{DeltaHeads, Format};

/// Bytes of an element of activations.
const F32: usize = size_of::<f32>();

/// Work of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiply-accumulates by the format of the weights, in the order of [`Format::ALL`]. Attention
    /// counts as f32, or as q8 if it computes with bytes.
    pub macs: [u64; Format::ALL.len()],
    /// Bytes read and written, including those of the weights.
    pub bytes: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Rows of activations, that is tokens, patches or frames.
    pub tokens: u64,
}

impl Work {
    /// Returns the multiply-accumulates of all formats.
    pub fn total_macs(&self) -> u64 {
        self.macs.iter().sum()
    }

    fn moved(tokens: usize, bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            tokens: tokens as u64,
            ..Self::default()
        }
    }

    fn multiplied(mut self, format: Format, macs: usize) -> Self {
        self.macs[place(format)] += macs as u64;
        self
    }

    fn weighted(mut self, shape: MatrixShape) -> Self {
        let bytes = packed_bytes(shape) as u64;
        self.weight_bytes += bytes;
        self.bytes += bytes;
        self
    }
}

/// Adds the counts; of the tokens, takes the larger number.
impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        for (macs, more) in self.macs.iter_mut().zip(other.macs) {
            *macs += more;
        }
        self.bytes += other.bytes;
        self.weight_bytes += other.weight_bytes;
        self.tokens = self.tokens.max(other.tokens);
    }
}

/// Returns the place of a format in [`Format::ALL`].
fn place(format: Format) -> usize {
    let found = Format::ALL.iter().position(|&other| other == format);
    found.expect("ALL has all formats")
}

fn packed_bytes(shape: MatrixShape) -> usize {
    shape.panels() * shape.panel_bytes()
}

/// Counts `x Wᵀ`, with `extra` further vectors of outputs (bias) and matrices of outputs
/// (residual).
pub(crate) fn linear(tokens: usize, shape: MatrixShape, bias: bool, residual: bool) -> Work {
    let MatrixShape {
        format, rows, cols, ..
    } = shape;
    let outputs = tokens * rows * (1 + usize::from(residual));
    let elements = tokens * cols + outputs + rows * usize::from(bias);
    Work::moved(tokens, F32 * elements)
        .weighted(shape)
        .multiplied(format, tokens * rows * cols)
}

/// Counts a fused feed-forward part, whose hidden activations are not written.
pub(crate) fn feed_forward(
    tokens: usize,
    [up, down]: [MatrixShape; 2],
    biases: [bool; 2],
    residual: bool,
) -> Work {
    let outputs = tokens * down.rows * (1 + usize::from(residual));
    let biases = up.rows * usize::from(biases[0]) + down.rows * usize::from(biases[1]);
    Work::moved(tokens, F32 * (tokens * up.cols + outputs + biases))
        .weighted(up)
        .weighted(down)
        .multiplied(up.format, tokens * up.rows * up.cols)
        .multiplied(down.format, tokens * down.rows * down.cols)
}

/// Counts the gated delta rule: reading the state with the key and with the query, and the update.
pub(crate) fn delta_rule(heads: DeltaHeads, tokens: usize) -> Work {
    let [rows, columns] = heads.state();
    let per_token = heads.width() + 2 * heads.value_heads + 2 * heads.value_width();
    Work::moved(tokens, F32 * (tokens * per_token + 2 * rows * columns))
        .multiplied(Format::F32, 3 * tokens * rows * columns)
}

/// Counts the rows `ids` of a table.
pub(crate) fn gather(shape: MatrixShape, ids: usize) -> Work {
    let row = packed_bytes(shape) / shape.rows.max(1);
    Work::moved(ids, ids * (row + F32 * shape.cols))
}

/// Counts an operation that reads `read` elements and writes `written` in `tokens` rows.
pub(crate) fn elements(tokens: usize, read: usize, written: usize) -> Work {
    Work::moved(tokens, F32 * (read + written))
}

/// Size of attention.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub heads: Heads,
    pub q_len: usize,
    pub kv_len: usize,
    pub mask: Mask<'a>,
    /// Bytes of keys and values of a position.
    pub position_bytes: usize,
    /// Format of the products.
    pub format: Format,
}

impl Attention<'_> {
    /// Returns the bytes of keys and values of a position that are not in a cache.
    pub fn activations(heads: Heads) -> usize {
        2 * F32 * heads.kv_heads * heads.head_dim
    }

    /// Counts the products of queries and keys, the softmax, and the products with the values.
    pub fn parts(self) -> [Work; 3] {
        let Self {
            heads,
            q_len,
            kv_len,
            mask,
            ..
        } = self;
        let visible = |query| mask.visible(query, q_len, kv_len);
        let pairs: usize = (0..q_len).map(|query| visible(query).len()).sum();
        // The bounds of the visible keys do not descend from one query to the next.
        let keys = match q_len {
            0 => 0,
            _ => visible(q_len - 1).end.saturating_sub(visible(0).start),
        };
        let width = heads.heads * heads.head_dim;
        let product = || {
            let bytes = F32 * q_len * width + keys * self.position_bytes / 2;
            Work::moved(q_len, bytes).multiplied(self.format, pairs * width)
        };
        [product(), Work::default(), product()]
    }
}

/// Counts the storage of keys and values of `tokens` positions.
pub(crate) fn append(heads: Heads, tokens: usize, position_bytes: usize) -> Work {
    let read = Attention::activations(heads);
    Work::moved(tokens, tokens * (read + position_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mlp_of_a_vision_block() {
        // CLIP ViT-B/32: 50 rows of width 768, 3072 hidden units, in q8.
        let up = MatrixShape::new(Format::Q8, 3072, 768);
        let down = MatrixShape::new(Format::Q8, 768, 3072);
        let work = feed_forward(50, [up, down], [true, true], true);
        assert_eq!(work.total_macs(), 2 * 50 * 768 * 3072);
        // Panels of 16 rows: scales of 2 bytes for 128 inputs, padded to 128 bytes, and quants.
        let weights = 192 * (256 + 16 * 768) + 48 * (768 + 16 * 3072);
        assert_eq!(work.weight_bytes, weights);
        // Input, residual and output; the two biases.
        let activations = 4 * (3 * 50 * 768 + 3072 + 768);
        assert_eq!(work.bytes, weights + activations);
        assert_eq!(work.tokens, 50);
    }

    #[test]
    fn attention_of_a_decoder_step() {
        // Qwen2-1.5B: 12 query heads and 2 key heads of 128; one token after 99 others, in f16.
        let heads = Heads {
            heads: 12,
            kv_heads: 2,
            head_dim: 128,
        };
        let attention = Attention {
            heads,
            q_len: 1,
            kv_len: 100,
            mask: Mask::Causal,
            position_bytes: 2 * 2 * 2 * 128,
            format: Format::F32,
        };
        let [scores, softmax, values] = attention.parts();
        assert_eq!(scores.total_macs(), 12 * 128 * 100);
        assert_eq!(values.total_macs(), 12 * 128 * 100);
        assert_eq!(softmax, Work::default());
        // The query and 100 keys of 2 heads in f16.
        assert_eq!(scores.bytes, 4 * 12 * 128 + 100 * 2 * 128 * 2);
        // Keys and values are read as floats and stored as halves.
        let stored = append(heads, 1, attention.position_bytes);
        assert_eq!(stored.bytes, 2 * 2 * 128 * (4 + 2));
    }

    #[test]
    fn a_mask_counts_only_visible_keys() {
        let heads = Heads {
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
        };
        let macs = |mask, q_len| {
            let attention = Attention {
                heads,
                q_len,
                kv_len: 8,
                mask,
                position_bytes: Attention::activations(heads),
                format: Format::F32,
            };
            attention.parts()[0].total_macs()
        };
        assert_eq!(macs(Mask::Full, 8), 4 * 64);
        assert_eq!(macs(Mask::Causal, 8), 4 * 36);
        assert_eq!(macs(Mask::Segments(&[0, 3, 8]), 8), 4 * (9 + 25));
        assert_eq!(macs(Mask::Ranges(&[2..5, 3..8]), 2), 4 * 8);
    }

    #[test]
    fn one_matrix() {
        let shape = MatrixShape::new(Format::F32, 8, 16);
        let work = linear(3, shape, false, false);
        assert_eq!(work.total_macs(), 3 * 8 * 16);
        assert_eq!(work.bytes, 4 * (8 * 16 + 3 * 16 + 3 * 8));
        let both = linear(3, shape, true, true);
        assert_eq!(both.bytes - work.bytes, 4 * (8 + 3 * 8));
        let rows = gather(MatrixShape::new(Format::F16, 8, 16), 2);
        assert_eq!(rows.bytes, 2 * (2 * 16 + 4 * 16));
        assert_eq!(rows.total_macs(), 0);
    }
}
