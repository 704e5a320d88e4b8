//! Softmax attention without a matrix of scores, and the cache of keys and values.
//!
//! Keys and values are laid out head by head in chunks of [`CHUNK`] positions: first the keys, transposed, then the
//! values, so that both products of a chunk are plain row-major matrix products. For each chunk a query has a maximum, a sum of exponentials and a weighted sum
//! of values of its own, and these are merged chunk after chunk (online softmax: Milakov & Gimelshein 2018,
//! [arXiv:1805.02867](https://arxiv.org/abs/1805.02867); Dao et al. 2022,
//! [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)). Chunks begin at fixed positions, so a query's result does
//! not depend on which other queries, or how many threads, take part.

mod cache;
mod integer;
mod layout;
mod step;

use cache::CachedKeys;
pub use cache::{CacheError, KvCache};
pub use integer::{MAX_INTEGER_HEAD_DIM, integer_attention};

use crate::pool::ThreadPool;
use crate::scratch::{self, Parts, fresh};
use layout::{ChunkLayout, Keys};
use std::mem::MaybeUninit;
use step::Step;

/// Positions of a chunk.
pub const CHUNK: usize = 128;
/// Floats of keys and values that [`attention`] lays out at a time.
const PACK_FLOATS: usize = 1 << 20;

/// Number and size of attention heads. Query head `h` uses key/value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    fn check(&self) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = *self;
        assert!(
            head_dim > 0 && kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads),
            "impossible heads: {self:?}"
        );
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Rows inside a larger matrix: row `t` is `data[t * stride ..]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Beginning at the first row's first element.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    fn check(&self, what: &str, rows: usize, width: usize) {
        assert!(
            rows <= 1 || self.stride >= width,
            "{what}: rows of {width} in a stride of {}",
            self.stride
        );
        let needed = if rows == 0 {
            0
        } else {
            (rows - 1) * self.stride + width
        };
        assert!(
            needed <= self.data.len(),
            "{what}: {rows} rows need {needed} elements, found {}",
            self.data.len()
        );
    }

    /// `width` elements of row `row` from column `column` on.
    fn at(&self, row: usize, column: usize, width: usize) -> &'a [f32] {
        &self.data[row * self.stride + column..][..width]
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// All.
    Full,
    /// Those of its own segment. Cumulative lengths, from 0 to the number of keys, which is that of the queries.
    Segments(&'a [usize]),
    /// Query `i` sees the keys `0..=(keys - queries + i)`.
    Causal,
}

/// Attention: `softmax(q k^T * scale + bias) v` for each head, computed tile by tile.
///
/// A query that sees no key gets zeros.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `k`, `v`: `kv_len` rows of `kv_heads * head_dim`;
/// `bias`: `[heads, q_len, kv_len]`; result: `[q_len, heads * head_dim]`
///
/// # Panics
/// If the heads are impossible, a slice is too short, `Causal` has more queries than keys,
/// or segments are not ascending from 0 to `kv_len == q_len`.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    q_len: usize,
    k: Rows,
    v: Rows,
    kv_len: usize,
    mask: Mask,
    bias: Option<&[f32]>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    let (width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    q.check("queries", q_len, width);
    k.check("keys", kv_len, kv_width);
    v.check("values", kv_len, kv_width);
    check_mask(mask, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    let layout = ChunkLayout::new(heads.head_dim);
    let chunks = kv_len.div_ceil(CHUNK);
    let head_floats = chunks * layout.len();
    let batch = (PACK_FLOATS / head_floats.max(1)).clamp(1, heads.kv_heads);
    let fill = |out: &Parts<MaybeUninit<f32>>| {
        scratch::with(batch * head_floats, |packed| {
            for first in (0..heads.kv_heads).step_by(batch) {
                let count = batch.min(heads.kv_heads - first);
                let parts = Parts::new(packed);
                pool.run(count * chunks, |index| {
                    let at = index * layout.len()..(index + 1) * layout.len();
                    // SAFETY: every chunk has a place and a task of its own.
                    #[allow(unsafe_code)]
                    let chunk = unsafe { parts.part(at) };
                    let (head, from) = (first + index / chunks, index % chunks * CHUNK);
                    let positions = from..(from + CHUNK).min(kv_len);
                    layout.fill(chunk, k, v, head * heads.head_dim, positions);
                });
                let keys = Keys {
                    data: packed,
                    head_len: head_floats,
                    layout,
                    first,
                };
                let step = Step {
                    heads,
                    q,
                    q_len,
                    kv_len,
                    mask,
                    bias,
                    scale,
                    out,
                    kernels: pool.kernels(),
                };
                step.run(pool, keys, first..first + count);
            }
        });
    };
    // SAFETY: the steps store the results of all queries and heads.
    #[allow(unsafe_code)]
    unsafe {
        fresh(q_len * width, fill)
    }
}

fn check_mask(mask: Mask, q_len: usize, kv_len: usize) {
    match mask {
        Mask::Full => {}
        Mask::Causal => assert!(q_len <= kv_len, "{q_len} causal queries of {kv_len} keys"),
        Mask::Segments(ends) => {
            assert_eq!(q_len, kv_len, "segments need as many queries as keys");
            assert!(ends.is_sorted(), "segments must ascend");
            assert!(
                ends.first() == Some(&0) && ends.last() == Some(&kv_len),
                "segments must cover 0..{kv_len}"
            );
        }
    }
}

/// Causal attention over a layer of the cache: query `i` is at position `kv_len - q_len + i` and sees all positions
/// up to its own. The positions up to `kv_len` must have been appended.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `bias`, added to the scaled scores: `[heads, q_len, kv_len]`;
/// result: `[q_len, heads * head_dim]`
///
/// # Panics
/// If the heads differ from the cache's, `layer` or `kv_len` is beyond it, there are more queries than positions, or
/// a slice has the wrong length.
#[allow(clippy::too_many_arguments)]
pub fn cached_attention(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    q_len: usize,
    cache: &KvCache,
    layer: usize,
    kv_len: usize,
    bias: Option<&[f32]>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    let width = heads.heads * heads.head_dim;
    assert!(
        heads.kv_heads == cache.kv_heads && heads.head_dim == cache.layout.head_dim,
        "{heads:?} and {cache:?}"
    );
    assert!(layer < cache.layers, "layer {layer} of {}", cache.layers);
    assert!(
        kv_len <= cache.capacity(),
        "{kv_len} positions of {}",
        cache.capacity()
    );
    q.check("queries", q_len, width);
    check_mask(Mask::Causal, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    let mask = Mask::Causal;
    // SAFETY: the step stores the results of all queries and heads.
    #[allow(unsafe_code)]
    unsafe {
        fresh(q_len * width, |out| {
            let step = Step {
                heads,
                q,
                q_len,
                kv_len,
                mask,
                bias,
                scale,
                out,
                kernels: pool.kernels(),
            };
            match cache.keys(layer) {
                CachedKeys::Single(keys) => step.run(pool, keys, 0..heads.kv_heads),
                CachedKeys::Half(keys) => step.run(pool, keys, 0..heads.kv_heads),
            }
        })
    }
}
