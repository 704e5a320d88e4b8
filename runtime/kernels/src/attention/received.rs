//! The attention that each key receives.
//!
//! The softmax of a tile of queries over all keys is in memory at once, because a key's share of a query is
//! known only with the sum over all keys.

use super::layout::STRIP;
use super::shape::{Heads, Mask, Rows, WeightedMask, check_mask};
use crate::cpu::{Kernels, Strided};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::ops::Range;

/// Floats of keys and sums that are in memory at a time.
const PACK_FLOATS: usize = 1 << 20;
/// Blocks of queries per key head. Each is a task with its own sums, so their number must not depend on that
/// of the threads.
const BLOCKS: usize = 8;
/// Rows of a tile: queries times heads that share keys.
const TILE_ROWS: usize = 24;

/// Attention probability that each key receives, `softmax(q k^T * scale + ln(weights))[query, key]`, as a mean
/// over all heads and over the queries that the key is visible to. It is 0 for a key without queries.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `k`: `kv_len` rows of `kv_heads * head_dim`; result: `[kv_len]`
///
/// # Panics
/// As [`attention`](super::attention()).
#[allow(clippy::too_many_arguments)]
pub fn attention_received<'a>(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    q_len: usize,
    k: Rows,
    kv_len: usize,
    mask: impl Into<WeightedMask<'a>>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    let head_dim = heads.head_dim;
    q.check("queries", q_len, heads.heads * head_dim);
    k.check("keys", kv_len, heads.kv_heads * head_dim);
    let weighted = mask.into();
    let log_weights = weighted.log_weights(kv_len);
    check_mask(weighted.mask, q_len, kv_len);
    let queries = Queries {
        heads,
        q,
        q_len,
        kv_len,
        mask: weighted.mask,
        log_weights: log_weights.as_deref(),
        scale,
        kernels: pool.kernels(),
    };
    let mut received = vec![0.0; kv_len];
    let (packed_len, sums_len) = (kv_len.next_multiple_of(STRIP) * head_dim, BLOCKS * kv_len);
    let batch = (PACK_FLOATS / (packed_len + sums_len).max(1)).clamp(1, heads.kv_heads);
    scratch::with(batch * (packed_len + sums_len), |buffer| {
        let (packed, sums) = buffer.split_at_mut(batch * packed_len);
        for first in (0..heads.kv_heads).step_by(batch) {
            let kv_heads = first..heads.kv_heads.min(first + batch);
            let tasks = kv_heads.len() * BLOCKS;
            pack(pool, head_dim, k, kv_len, kv_heads, packed);
            let parts = Parts::new(sums);
            pool.run(tasks, |index| {
                // SAFETY: each head and block has its own place and task.
                #[allow(unsafe_code)]
                let sums = unsafe { parts.part(index * kv_len..(index + 1) * kv_len) };
                let keys = &packed[index / BLOCKS * packed_len..][..packed_len];
                queries.block(first + index / BLOCKS, index % BLOCKS, keys, sums);
            });
            for task in 0..tasks {
                let sums = &sums[task * kv_len..][..kv_len];
                queries.kernels.merge(&mut received, 1.0, sums, 1.0);
            }
        }
    });
    let counts = weighted.mask.queries_per_key(q_len, kv_len);
    for (received, count) in received.iter_mut().zip(counts) {
        *received /= (heads.heads * count.max(1)) as f32;
    }
    received
}

/// Copies the keys of some heads to matrices `[head_dim, STRIP]`, the last one of a head padded with zeros.
fn pack(
    pool: &ThreadPool,
    head_dim: usize,
    k: Rows,
    kv_len: usize,
    kv_heads: Range<usize>,
    packed: &mut [f32],
) {
    let (strips, strip_len) = (kv_len.div_ceil(STRIP), STRIP * head_dim);
    let parts = Parts::new(packed);
    pool.run(kv_heads.len() * strips, |index| {
        // SAFETY: each head and strip has its own place and task.
        #[allow(unsafe_code)]
        let strip = unsafe { parts.part(index * strip_len..(index + 1) * strip_len) };
        let (head, from) = (kv_heads.start + index / strips, index % strips * STRIP);
        if from + STRIP > kv_len {
            strip.fill(0.0);
        }
        for (i, position) in (from..kv_len.min(from + STRIP)).enumerate() {
            let key = k.at(position, head * head_dim, head_dim);
            for (row, key) in strip.chunks_exact_mut(STRIP).zip(key) {
                row[i] = *key;
            }
        }
    });
}

/// Operands common to all tasks.
struct Queries<'a> {
    heads: Heads,
    q: Rows<'a>,
    q_len: usize,
    kv_len: usize,
    mask: Mask<'a>,
    log_weights: Option<&'a [f32]>,
    scale: f32,
    kernels: &'static dyn Kernels,
}

impl Queries<'_> {
    fn visible(&self, query: usize) -> Range<usize> {
        self.mask.visible(query, self.q_len, self.kv_len)
    }

    /// Sums what each key receives from the queries of a block and the heads that share key head `head`.
    fn block(&self, head: usize, block: usize, keys: &[f32], sums: &mut [f32]) {
        sums.fill(0.0);
        let start = |block: usize| self.q_len * block / BLOCKS;
        let (queries, size) = (
            start(block)..start(block + 1),
            (TILE_ROWS / self.heads.group()).max(1),
        );
        for first in queries.clone().step_by(size) {
            self.tile(head, first..queries.end.min(first + size), keys, sums);
        }
    }

    /// As [`block`](Self::block), for queries whose softmax is in memory at once.
    fn tile(&self, head: usize, queries: Range<usize>, keys: &[f32], sums: &mut [f32]) {
        let (group, head_dim) = (self.heads.group(), self.heads.head_dim);
        // The bounds of the visible keys ascend with the query.
        let (from, to) = (
            self.visible(queries.start).start / STRIP * STRIP,
            self.visible(queries.end - 1).end.next_multiple_of(STRIP),
        );
        let (rows, width) = (queries.len() * group, to.saturating_sub(from));
        scratch::with(rows * (head_dim + width), |buffer| {
            let (q, scores) = buffer.split_at_mut(rows * head_dim);
            for (row, q) in q.chunks_exact_mut(head_dim).enumerate() {
                let column = (head * group + row % group) * head_dim;
                let query = self.q.at(queries.start + row / group, column, head_dim);
                for (q, query) in q.iter_mut().zip(query) {
                    *q = query * self.scale;
                }
            }
            self.scores(rows, q, &keys[from * head_dim..], width, scores);
            for row in 0..rows {
                let visible = self.visible(queries.start + row / group);
                if visible.is_empty() {
                    continue;
                }
                let s = &mut scores[row * width + visible.start - from..][..visible.len()];
                if let Some(log_weights) = self.log_weights {
                    self.kernels
                        .merge(s, 1.0, &log_weights[visible.clone()], 1.0);
                }
                let (_, sum) = self.kernels.softmax(s);
                self.kernels.merge(&mut sums[visible], 1.0, s, 1.0 / sum);
            }
        });
    }

    /// Computes the scores `[rows, width]` of the first `width` keys.
    fn scores(&self, rows: usize, q: &[f32], keys: &[f32], width: usize, scores: &mut [f32]) {
        let head_dim = self.heads.head_dim;
        let q = Strided {
            data: q,
            stride: head_dim,
        };
        for column in (0..width).step_by(STRIP) {
            let keys = Strided {
                data: &keys[column * head_dim..],
                stride: STRIP,
            };
            let size = [rows, STRIP, head_dim];
            let scores = &mut scores[column..];
            self.kernels.matmul(size, q, keys, false, scores, width);
        }
    }
}
