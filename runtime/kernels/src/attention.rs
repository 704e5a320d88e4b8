//! Softmax attention without a matrix of scores, and the cache of keys and values.
//!
//! Keys and values are laid out head by head in chunks of [`CHUNK`] positions: first the keys, transposed, then the
//! values, so that both products of a chunk are plain row-major matrix products; each in strips of [`STRIP`] columns, so
//! that a product reads consecutive memory. For each chunk a query has a maximum, a sum of exponentials and a weighted sum
//! of values of its own, and these are merged chunk after chunk (online softmax: Milakov & Gimelshein 2018,
//! [arXiv:1805.02867](https://arxiv.org/abs/1805.02867); Dao et al. 2022,
//! [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)). Chunks begin at fixed positions, so a query's result does
//! not depend on which other queries, or how many threads, take part.

use crate::cpu::{Kernels, Strided};
use crate::format::PANEL;
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::alloc::Layout;
use std::ops::Range;
use thiserror::Error;

/// Positions of a chunk.
pub const CHUNK: usize = 128;
/// Columns of the matrices that keys and values are laid out as.
const STRIP: usize = 32;
/// Queries, times heads that share keys, that a task works on.
const TASK_ROWS: usize = 48;
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
/// `bias`: `[heads, q_len, kv_len]`; `out`: `[q_len, heads * head_dim]`
///
/// # Panics
/// If the heads are impossible, a slice is too short, `out` has another length, `Causal` has more queries than keys,
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
    out: &mut [f32],
) {
    heads.check();
    let (width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    q.check("queries", q_len, width);
    k.check("keys", kv_len, kv_width);
    v.check("values", kv_len, kv_width);
    assert_eq!(out.len(), q_len * width, "output of {q_len} queries");
    check_mask(mask, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    let layout = ChunkLayout::new(heads.head_dim);
    let chunks = kv_len.div_ceil(CHUNK);
    let head_floats = chunks * layout.floats();
    let batch = (PACK_FLOATS / head_floats.max(1)).clamp(1, heads.kv_heads);
    let out = Parts::new(out);
    scratch::with(batch * head_floats, |packed| {
        for first in (0..heads.kv_heads).step_by(batch) {
            let count = batch.min(heads.kv_heads - first);
            let parts = Parts::new(packed);
            pool.run(count * chunks, |index| {
                // SAFETY: every chunk has a place and a task of its own.
                #[allow(unsafe_code)]
                let chunk =
                    unsafe { parts.part(index * layout.floats()..(index + 1) * layout.floats()) };
                let (head, from) = (first + index / chunks, index % chunks * CHUNK);
                let positions = from..(from + CHUNK).min(kv_len);
                layout.fill(chunk, k, v, head * heads.head_dim, positions);
            });
            let keys = Keys {
                data: packed,
                head_floats,
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
                out: &out,
                kernels: pool.kernels(),
            };
            step.run(pool, keys, first..first + count);
        }
    });
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

/// How the keys and values of one chunk of one head lie in memory: `CHUNK / STRIP` matrices `[head_dim, STRIP]` of keys,
/// then the values, cut into matrices `[CHUNK, STRIP]` (the last one narrower).
#[derive(Clone, Copy, Debug)]
struct ChunkLayout {
    head_dim: usize,
    /// Columns of the values, zeros at the end included.
    padded: usize,
}

impl ChunkLayout {
    fn new(head_dim: usize) -> Self {
        Self {
            head_dim,
            padded: head_dim.next_multiple_of(PANEL),
        }
    }

    fn floats(self) -> usize {
        CHUNK * (self.head_dim + self.padded)
    }

    /// The columns of the values at which a strip begins, and its width.
    fn strips(self) -> impl Iterator<Item = (usize, usize)> {
        let Self { padded, .. } = self;
        (0..padded)
            .step_by(STRIP)
            .map(move |column| (column, STRIP.min(padded - column)))
    }

    /// Copies positions into a chunk and clears the rest of it.
    fn fill(self, chunk: &mut [f32], k: Rows, v: Rows, column: usize, positions: Range<usize>) {
        if positions.len() < CHUNK || self.padded > self.head_dim {
            chunk.fill(0.0);
        }
        self.put(chunk, 0, k, v, column, positions);
    }

    /// Copies positions into a chunk, the first at `at`.
    fn put(
        self,
        chunk: &mut [f32],
        at: usize,
        k: Rows,
        v: Rows,
        column: usize,
        positions: Range<usize>,
    ) {
        let (keys, values) = chunk.split_at_mut(self.head_dim * CHUNK);
        for (i, position) in (at..).zip(positions) {
            let key = k.at(position, column, self.head_dim);
            let strip = &mut keys[i / STRIP * STRIP * self.head_dim..][..STRIP * self.head_dim];
            for (row, key) in strip.chunks_exact_mut(STRIP).zip(key) {
                row[i % STRIP] = *key;
            }
            let value = v.at(position, column, self.head_dim);
            for (column, width) in self.strips() {
                let value = &value[column..self.head_dim.min(column + width)];
                values[CHUNK * column + i * width..][..value.len()].copy_from_slice(value);
            }
        }
    }
}

/// The laid out keys and values of some heads.
#[derive(Clone, Copy)]
struct Keys<'a> {
    data: &'a [f32],
    head_floats: usize,
    layout: ChunkLayout,
    /// The head that `data` begins with.
    first: usize,
}

impl<'a> Keys<'a> {
    fn chunk(&self, head: usize, chunk: usize) -> (&'a [f32], &'a [f32]) {
        let at = (head - self.first) * self.head_floats + chunk * self.layout.floats();
        self.data[at..][..self.layout.floats()].split_at(self.layout.head_dim * CHUNK)
    }
}

/// One attention step: what all its tasks have in common.
struct Step<'a> {
    heads: Heads,
    q: Rows<'a>,
    q_len: usize,
    kv_len: usize,
    mask: Mask<'a>,
    bias: Option<&'a [f32]>,
    scale: f32,
    out: &'a Parts<'a, f32>,
    kernels: &'static dyn Kernels,
}

/// The working memory of a task: `rows` are queries, each with every head that shares the keys.
struct Work<'a> {
    /// Scaled queries, `[rows, head_dim]`.
    q: &'a mut [f32],
    /// Scores of a chunk, `[rows, CHUNK]`.
    s: &'a mut [f32],
    /// Weighted values of a chunk, `[rows, padded]`.
    o: &'a mut [f32],
}

impl Step<'_> {
    fn run(&self, pool: &ThreadPool, keys: Keys, kv_heads: Range<usize>) {
        let group = self.heads.group();
        let tile = (TASK_ROWS / group).max(1);
        let tiles = self.q_len.div_ceil(tile);
        let tasks = tiles * kv_heads.len();
        let chunks = self.kv_len.div_ceil(CHUNK);
        if tasks < 2 * pool.threads() && chunks > 1 && self.q_len <= tile {
            return self.run_by_chunks(pool, keys, kv_heads, chunks);
        }
        pool.run(tasks, |index| {
            // The longest tasks of a causal mask first.
            let tile_index = tiles - 1 - index / kv_heads.len();
            let head = kv_heads.start + index % kv_heads.len();
            let queries = tile_index * tile..((tile_index + 1) * tile).min(self.q_len);
            self.tile(keys, head, queries);
        });
    }

    /// The keys that a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        match self.mask {
            Mask::Full => 0..self.kv_len,
            Mask::Causal => 0..self.kv_len - self.q_len + query + 1,
            Mask::Segments(ends) => {
                let end = ends.partition_point(|end| *end <= query);
                ends[end - 1]..ends[end]
            }
        }
    }

    /// Lends the working memory for some queries, with the queries in it, and accumulators: a maximum and a sum per
    /// row, and the weighted values.
    fn with_work(
        &self,
        padded: usize,
        head: usize,
        queries: Range<usize>,
        f: impl FnOnce(Work, &mut [f32], &mut [f32]),
    ) {
        let (head_dim, group) = (self.heads.head_dim, self.heads.group());
        let rows = queries.len() * group;
        scratch::with(rows * (head_dim + CHUNK + 2 * padded + 2), |buffer| {
            let (q, buffer) = buffer.split_at_mut(rows * head_dim);
            let (s, buffer) = buffer.split_at_mut(rows * CHUNK);
            let (o, buffer) = buffer.split_at_mut(rows * padded);
            let (acc, stats) = buffer.split_at_mut(rows * padded);
            for (row, q) in q.chunks_exact_mut(head_dim).enumerate() {
                let column = (head * group + row % group) * head_dim;
                let query = self.q.at(queries.start + row / group, column, head_dim);
                for (q, query) in q.iter_mut().zip(query) {
                    *q = query * self.scale;
                }
            }
            f(Work { q, s, o }, acc, stats);
        });
    }

    /// Some queries of the heads that share key head `head`, over all their chunks.
    fn tile(&self, keys: Keys, head: usize, queries: Range<usize>) {
        let padded = keys.layout.padded;
        let group = self.heads.group();
        self.with_work(padded, head, queries.clone(), |mut work, acc, stats| {
            acc.fill(0.0);
            for stats in stats.chunks_exact_mut(2) {
                stats.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
            }
            let first = queries
                .clone()
                .map(|query| self.visible(query).start)
                .min()
                .unwrap_or(0);
            let end = queries
                .clone()
                .map(|query| self.visible(query).end)
                .max()
                .unwrap_or(0);
            for chunk in first / CHUNK..end.div_ceil(CHUNK) {
                self.chunk(
                    keys,
                    head,
                    chunk,
                    queries.clone(),
                    &mut work,
                    |kernels, row, max, sum, o| {
                        let stats = &mut stats[2 * row..2 * row + 2];
                        merge(
                            kernels,
                            stats,
                            &mut acc[row * padded..][..padded],
                            max,
                            sum,
                            o,
                        );
                    },
                );
            }
            for row in 0..queries.len() * group {
                let out = self.out_row(head, queries.start + row / group, row % group);
                finish(&acc[row * padded..], stats[2 * row + 1], out);
            }
        });
    }

    #[allow(clippy::mut_from_ref)]
    fn out_row(&self, head: usize, query: usize, member: usize) -> &mut [f32] {
        let at =
            (query * self.heads.heads + head * self.heads.group() + member) * self.heads.head_dim;
        // SAFETY: every query and head belongs to one task, which takes its output once.
        #[allow(unsafe_code)]
        unsafe {
            self.out.part(at..at + self.heads.head_dim)
        }
    }

    /// The softmax of one chunk of keys: calls `done` with each row's maximum, sum and weighted values, unless the row
    /// sees nothing of the chunk.
    fn chunk(
        &self,
        keys: Keys,
        head: usize,
        chunk: usize,
        queries: Range<usize>,
        work: &mut Work,
        mut done: impl FnMut(&dyn Kernels, usize, f32, f32, &[f32]),
    ) {
        let (head_dim, padded, group) =
            (self.heads.head_dim, keys.layout.padded, self.heads.group());
        let rows = queries.len() * group;
        let start = chunk * CHUNK;
        let count = CHUNK.min(self.kv_len - start);
        let (k, v) = keys.chunk(head, chunk);
        work.s.fill(0.0);
        let q = Strided {
            data: work.q,
            stride: head_dim,
        };
        for (strip, k) in k
            .chunks_exact(STRIP * head_dim)
            .enumerate()
            .take(count.div_ceil(STRIP))
        {
            let k = Strided {
                data: k,
                stride: STRIP,
            };
            let width = STRIP.min(count.next_multiple_of(PANEL) - strip * STRIP);
            self.kernels.matmul(
                [rows, width, head_dim],
                q,
                k,
                &mut work.s[strip * STRIP..],
                CHUNK,
            );
        }
        let mut stats = [(0.0, 0.0); TASK_ROWS];
        // A task has more rows than `TASK_ROWS` only if one query has more heads than that.
        let mut long_stats = Vec::new();
        let stats = if rows <= TASK_ROWS {
            &mut stats[..rows]
        } else {
            long_stats.resize(rows, (0.0, 0.0));
            &mut long_stats[..]
        };
        for (row, (s, stats)) in work.s.chunks_exact_mut(CHUNK).zip(&mut *stats).enumerate() {
            let query = queries.start + row / group;
            let seen = self.visible(query);
            let seen = seen.start.clamp(start, start + count) - start
                ..seen.end.clamp(start, start + count) - start;
            if let Some(bias) = self.bias {
                let at = ((head * group + row % group) * self.q_len + query) * self.kv_len + start;
                for (s, bias) in s[..count].iter_mut().zip(&bias[at..]) {
                    *s += bias;
                }
            }
            *stats = self.kernels.softmax(&mut s[seen.clone()]);
            if stats.0 == f32::NEG_INFINITY {
                s.fill(0.0);
            } else {
                s[..seen.start].fill(0.0);
                s[seen.end..].fill(0.0);
            }
        }
        work.o.fill(0.0);
        let s = Strided {
            data: work.s,
            stride: CHUNK,
        };
        for (column, width) in keys.layout.strips() {
            let v = Strided {
                data: &v[CHUNK * column..],
                stride: width,
            };
            self.kernels
                .matmul([rows, width, count], s, v, &mut work.o[column..], padded);
        }
        for (row, (max, sum)) in stats.iter().enumerate() {
            if *max != f32::NEG_INFINITY {
                done(
                    self.kernels,
                    row,
                    *max,
                    *sum,
                    &work.o[row * padded..][..padded],
                );
            }
        }
    }

    /// Few queries, many keys: the tasks are chunks, merged in their order afterwards. The same operations as
    /// [`tile`](Self::tile) does.
    fn run_by_chunks(&self, pool: &ThreadPool, keys: Keys, kv_heads: Range<usize>, chunks: usize) {
        let padded = keys.layout.padded;
        let group = self.heads.group();
        let rows = self.q_len * group;
        // Per row: maximum, sum, weighted values.
        let size = padded + 2;
        scratch::with(kv_heads.len() * chunks * rows * size, |partial| {
            let parts = Parts::new(partial);
            pool.run(kv_heads.len() * chunks, |index| {
                // SAFETY: every head and chunk has a place and a task of its own.
                #[allow(unsafe_code)]
                let partial = unsafe { parts.part(index * rows * size..(index + 1) * rows * size) };
                for row in partial.chunks_exact_mut(size) {
                    row[0] = f32::NEG_INFINITY;
                }
                let (head, chunk) = (kv_heads.start + index / chunks, index % chunks);
                self.with_work(padded, head, 0..self.q_len, |mut work, _, _| {
                    self.chunk(
                        keys,
                        head,
                        chunk,
                        0..self.q_len,
                        &mut work,
                        |_, row, max, sum, o| {
                            let partial = &mut partial[row * size..][..size];
                            partial[..2].copy_from_slice(&[max, sum]);
                            partial[2..].copy_from_slice(o);
                        },
                    );
                });
            });
            let partial = &*partial;
            pool.run(kv_heads.len() * rows, |index| {
                let (head, row) = (index / rows, index % rows);
                let mut stats = [f32::NEG_INFINITY, 0.0];
                scratch::with(padded, |acc| {
                    acc.fill(0.0);
                    for chunk in 0..chunks {
                        let partial =
                            &partial[((head * chunks + chunk) * rows + row) * size..][..size];
                        if partial[0] != f32::NEG_INFINITY {
                            merge(
                                self.kernels,
                                &mut stats,
                                acc,
                                partial[0],
                                partial[1],
                                &partial[2..],
                            );
                        }
                    }
                    finish(
                        acc,
                        stats[1],
                        self.out_row(kv_heads.start + head, row / group, row % group),
                    );
                });
            });
        });
    }
}

/// Merges a chunk's maximum, sum and weighted values into those so far.
fn merge(kernels: &dyn Kernels, stats: &mut [f32], acc: &mut [f32], max: f32, sum: f32, o: &[f32]) {
    let top = stats[0].max(max);
    let (alpha, beta) = ((stats[0] - top).exp(), (max - top).exp());
    stats[0] = top;
    stats[1] = stats[1] * alpha + sum * beta;
    kernels.merge(acc, alpha, o, beta);
}

fn finish(acc: &[f32], sum: f32, out: &mut [f32]) {
    // A sum is at least 1, the share of the maximum, unless no key was seen.
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = acc * inverse;
    }
}

/// What can be wrong with a cache.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheError {
    /// There is not that much memory.
    #[error(
        "no memory for a cache of {layers} layers, {kv_heads} heads of {head_dim} and {capacity} positions: \
         use a shorter context"
    )]
    TooLarge {
        /// Layers asked for.
        layers: usize,
        /// Key/value heads asked for.
        kv_heads: usize,
        /// Size of a head asked for.
        head_dim: usize,
        /// Positions asked for.
        capacity: usize,
    },
}

/// The keys and values of past tokens, for all layers. Memory is reserved at once and touched when it is used.
///
/// A step appends its tokens to every layer, computes [`cached_attention`] with them, and at the end calls
/// [`advance`](Self::advance).
pub struct KvCache {
    data: Vec<f32>,
    layers: usize,
    kv_heads: usize,
    layout: ChunkLayout,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache for `capacity` positions.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<Self, CacheError> {
        let error = CacheError::TooLarge {
            layers,
            kv_heads,
            head_dim,
            capacity,
        };
        let floats = || {
            let padded = head_dim.checked_next_multiple_of(PANEL)?;
            let chunk = head_dim.checked_add(padded)?.checked_mul(CHUNK)?;
            layers
                .checked_mul(kv_heads)?
                .checked_mul(capacity.div_ceil(CHUNK))?
                .checked_mul(chunk)
        };
        let data = floats().and_then(zeroed).ok_or(error)?;
        Ok(Self {
            data,
            layers,
            kv_heads,
            layout: ChunkLayout::new(head_dim),
            capacity,
            len: 0,
        })
    }

    /// Positions in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no positions yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    fn head_floats(&self) -> usize {
        self.capacity.div_ceil(CHUNK) * self.layout.floats()
    }

    fn layer(&self, layer: usize) -> Range<usize> {
        let size = self.kv_heads * self.head_floats();
        layer * size..(layer + 1) * size
    }

    /// Stores the keys and values of `tokens` tokens in a layer, from position [`len`](Self::len) on.
    ///
    /// # Shapes
    /// `k`, `v`: `tokens` rows of `kv_heads * head_dim`
    ///
    /// # Panics
    /// If there is no such layer, no room for the tokens, or `k` or `v` is too short.
    pub fn append(&mut self, layer: usize, k: Rows, v: Rows, tokens: usize) {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        assert!(
            tokens <= self.capacity - self.len,
            "{tokens} more positions after {} of {}",
            self.len,
            self.capacity
        );
        let (head_dim, layout, len) = (self.layout.head_dim, self.layout, self.len);
        k.check("keys", tokens, self.kv_heads * head_dim);
        v.check("values", tokens, self.kv_heads * head_dim);
        if tokens == 0 {
            return;
        }
        let (range, head_floats) = (self.layer(layer), self.head_floats());
        for (head, data) in self.data[range].chunks_exact_mut(head_floats).enumerate() {
            let mut done = 0;
            while done < tokens {
                let at = (len + done) % CHUNK;
                let count = (CHUNK - at).min(tokens - done);
                let chunk = &mut data[(len + done) / CHUNK * layout.floats()..][..layout.floats()];
                layout.put(chunk, at, k, v, head * head_dim, done..done + count);
                done += count;
            }
        }
    }

    /// Counts `tokens` appended tokens in, after all layers have them.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn advance(&mut self, tokens: usize) {
        assert!(
            tokens <= self.capacity - self.len,
            "{tokens} more positions after {} of {}",
            self.len,
            self.capacity
        );
        self.len += tokens;
    }

    /// Forgets all positions from `len` on; does nothing if there are not that many.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            layers,
            kv_heads,
            capacity,
            len,
            ..
        } = self;
        write!(
            f,
            "KvCache {{ layers: {layers}, kv_heads: {kv_heads}, len: {len} of {capacity} }}"
        )
    }
}

/// Zeroed floats that the system provides when they are touched; `None` if there is no memory for them.
fn zeroed(floats: usize) -> Option<Vec<f32>> {
    let layout = Layout::array::<f32>(floats).ok()?;
    if floats == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout is not empty; the vector takes over memory from the same allocator with exactly this
    // layout, filled with zeros, which are floats.
    #[allow(unsafe_code)]
    unsafe {
        let pointer = std::alloc::alloc_zeroed(layout);
        (!pointer.is_null()).then(|| Vec::from_raw_parts(pointer.cast(), floats, floats))
    }
}

/// Causal attention over a layer of the cache: query `i` is at position `kv_len - q_len + i` and sees all positions
/// up to its own. The positions up to `kv_len` must have been appended.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `bias`, added to the scaled scores: `[heads, q_len, kv_len]`;
/// `out`: `[q_len, heads * head_dim]`
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
    out: &mut [f32],
) {
    heads.check();
    let width = heads.heads * heads.head_dim;
    assert!(
        heads.kv_heads == cache.kv_heads && heads.head_dim == cache.layout.head_dim,
        "{heads:?} and {cache:?}"
    );
    assert!(layer < cache.layers, "layer {layer} of {}", cache.layers);
    assert!(
        kv_len <= cache.capacity,
        "{kv_len} positions of {}",
        cache.capacity
    );
    q.check("queries", q_len, width);
    assert_eq!(out.len(), q_len * width, "output of {q_len} queries");
    check_mask(Mask::Causal, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    let head_floats = cache.head_floats();
    let keys = Keys {
        data: &cache.data[cache.layer(layer)],
        head_floats,
        layout: cache.layout,
        first: 0,
    };
    let out = Parts::new(out);
    let mask = Mask::Causal;
    let step = Step {
        heads,
        q,
        q_len,
        kv_len,
        mask,
        bias,
        scale,
        out: &out,
        kernels: pool.kernels(),
    };
    step.run(pool, keys, 0..heads.kv_heads);
}
