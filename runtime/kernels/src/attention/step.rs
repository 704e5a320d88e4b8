//! An attention step over keys and values in chunks.

use super::layout::{CHUNK, Keys, STRIP};
use super::shape::{Heads, Mask, Rows};
use crate::cpu::{Kernels, Strided};
use crate::element::Element;
use crate::format::PANEL;
use crate::meter::{self, Laps, PartTimes};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of a tile: queries times heads that share keys. Their scores of a chunk stay in the L1 cache.
const TILE_ROWS: usize = 48;
/// Tiles per task. They go through the chunks together, so that a chunk is read from the L2 cache.
const TASK_TILES: usize = 4;

/// Operands common to all tasks of a step.
pub(super) struct Step<'a> {
    pub(super) heads: Heads,
    pub(super) q: Rows<'a>,
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
    pub(super) mask: Mask<'a>,
    pub(super) bias: Option<&'a [f32]>,
    /// Logarithms of the weights of the keys.
    pub(super) log_weights: Option<&'a [f32]>,
    pub(super) scale: f32,
    pub(super) out: &'a Parts<'a, MaybeUninit<f32>>,
    pub(super) kernels: &'static dyn Kernels,
    /// Times of the parts, if they are measured.
    pub(super) times: Option<PartTimes>,
}

/// Consecutive queries, with a row for each head that shares the keys, and their results so far.
struct Tile<'a> {
    queries: Range<usize>,
    /// Keys visible to any of the queries.
    keys: Range<usize>,
    /// Scaled queries, `[rows, head_dim]`.
    q: &'a [f32],
    /// Maximum and sum of each row.
    stats: &'a mut [f32],
    /// Weighted sums of values, `[rows, padded]`.
    acc: &'a mut [f32],
}

/// Results of a chunk.
struct Work<'a, 't> {
    /// Scores, `[rows, CHUNK]`.
    s: &'a mut [f32],
    /// Weighted sums of values, `[rows, padded]`.
    o: &'a mut [f32],
    /// Maximum and sum of each row.
    stats: &'a mut [f32],
    laps: Laps<'t>,
}

impl Step<'_> {
    /// Computes the results of the query heads of the key heads `kv_heads`.
    pub(super) fn run<T: Element>(
        mut self,
        pool: &ThreadPool,
        keys: Keys<'_, T>,
        kv_heads: Range<usize>,
    ) {
        self.times = PartTimes::start();
        self.compute(pool, keys, kv_heads);
        if let Some(times) = self.times {
            times.finish();
        }
    }

    fn compute<T: Element>(&self, pool: &ThreadPool, keys: Keys<'_, T>, kv_heads: Range<usize>) {
        let chunks = self.kv_len.div_ceil(CHUNK);
        let tiles = self.tiles();
        if tiles.len() == 1 && kv_heads.len() < 4 * pool.threads() && chunks > 1 {
            return self.run_by_chunks(pool, keys, kv_heads, chunks);
        }
        let together = (tiles.len() * kv_heads.len() / (4 * pool.threads())).clamp(1, TASK_TILES);
        let tasks: Vec<&[Range<usize>]> = tiles.chunks(together).collect();
        pool.run(tasks.len() * kv_heads.len(), |index| {
            // The last queries first, because they take longest with a causal mask.
            let tiles = tasks[tasks.len() - 1 - index / kv_heads.len()];
            self.run_tiles(keys, kv_heads.start + index % kv_heads.len(), tiles);
        });
    }

    /// Queries of each tile. No tile crosses a segment boundary.
    fn tiles(&self) -> Vec<Range<usize>> {
        let size = (TILE_ROWS / self.heads.group()).max(1);
        let whole = [0, self.q_len];
        let ends = if let Mask::Segments(ends) = self.mask {
            ends
        } else {
            &whole
        };
        let mut tiles = Vec::new();
        for segment in ends.windows(2) {
            let len = segment[1] - segment[0];
            let count = len.div_ceil(size);
            let start = |index: usize| segment[0] + len * index / count;
            tiles.extend((0..count).map(|index| start(index)..start(index + 1)));
        }
        tiles
    }

    /// Keys visible to a query.
    fn visible(&self, query: usize) -> Range<usize> {
        self.mask.visible(query, self.q_len, self.kv_len)
    }

    /// Calls `f` with initialized tiles for the given ranges of queries, and memory for the results of a chunk.
    fn with_tiles(
        &self,
        padded: usize,
        head: usize,
        ranges: &[Range<usize>],
        f: impl FnOnce(Vec<Tile>, Work),
    ) {
        let head_dim = self.heads.head_dim;
        let rows_of = |queries: &Range<usize>| queries.len() * self.heads.group();
        let (all, most) = (
            ranges.iter().map(rows_of).sum::<usize>(),
            ranges.iter().map(rows_of).max().unwrap_or(0),
        );
        let size = all * (head_dim + padded + 2) + most * (CHUNK + padded + 2);
        scratch::with(size, |buffer| {
            let (s, buffer) = buffer.split_at_mut(most * CHUNK);
            let (o, buffer) = buffer.split_at_mut(most * padded);
            let (stats, mut buffer) = buffer.split_at_mut(most * 2);
            let laps = Laps::new(self.times.as_ref());
            let work = Work { s, o, stats, laps };
            let mut tiles = Vec::with_capacity(ranges.len());
            for queries in ranges {
                let rows = rows_of(queries);
                let (q, rest) = buffer.split_at_mut(rows * head_dim);
                let (acc, rest) = rest.split_at_mut(rows * padded);
                let (stats, rest) = rest.split_at_mut(rows * 2);
                buffer = rest;
                tiles.push(self.tile(head, queries.clone(), q, stats, acc));
            }
            f(tiles, work);
        });
    }

    /// Initializes a tile.
    fn tile<'a>(
        &self,
        head: usize,
        queries: Range<usize>,
        q: &'a mut [f32],
        stats: &'a mut [f32],
        acc: &'a mut [f32],
    ) -> Tile<'a> {
        let (group, head_dim) = (self.heads.group(), self.heads.head_dim);
        for (row, q) in q.chunks_exact_mut(head_dim).enumerate() {
            let column = (head * group + row % group) * head_dim;
            let query = self.q.at(queries.start + row / group, column, head_dim);
            for (q, query) in q.iter_mut().zip(query) {
                *q = query * self.scale;
            }
        }
        acc.fill(0.0);
        for stats in stats.chunks_exact_mut(2) {
            stats.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        // The bounds of the visible keys ascend with the query.
        let keys = self.visible(queries.start).start..self.visible(queries.end - 1).end;
        Tile {
            queries,
            keys,
            q,
            stats,
            acc,
        }
    }

    /// Computes some tiles over all chunks visible to them.
    fn run_tiles<T: Element>(&self, keys: Keys<'_, T>, head: usize, ranges: &[Range<usize>]) {
        let padded = keys.layout.padded;
        self.with_tiles(padded, head, ranges, |mut tiles, mut work| {
            let first = tiles.iter().map(|tile| tile.keys.start).min().unwrap_or(0);
            let end = tiles.iter().map(|tile| tile.keys.end).max().unwrap_or(0);
            for chunk in first / CHUNK..end.div_ceil(CHUNK) {
                for tile in &mut tiles {
                    self.chunk(keys, head, chunk, tile, &mut work);
                    let rows = tile
                        .stats
                        .chunks_exact_mut(2)
                        .zip(tile.acc.chunks_exact_mut(padded));
                    let new = work.stats.chunks_exact(2).zip(work.o.chunks_exact(padded));
                    for ((stats, acc), (new_stats, o)) in rows.zip(new) {
                        merge(self.kernels, stats, acc, new_stats, o);
                    }
                    work.laps.lap(meter::VALUES);
                }
            }
            for tile in tiles {
                for (row, acc) in tile.acc.chunks_exact(padded).enumerate() {
                    finish(
                        acc,
                        tile.stats[2 * row + 1],
                        self.out_row(head, &tile.queries, row),
                    );
                }
            }
        });
    }

    /// The output of a row.
    #[allow(clippy::mut_from_ref)]
    fn out_row(&self, head: usize, queries: &Range<usize>, row: usize) -> &mut [MaybeUninit<f32>] {
        let (group, head_dim) = (self.heads.group(), self.heads.head_dim);
        let at = ((queries.start + row / group) * self.heads.heads + head * group + row % group)
            * head_dim;
        // SAFETY: each query and head belongs to one task, which takes its output once.
        #[allow(unsafe_code)]
        unsafe {
            self.out.part(at..at + head_dim)
        }
    }

    /// Computes the softmax over one chunk of keys: the maximum of each row (-inf if no key of the chunk is
    /// visible), the sum and the weighted sum of values, in `work`.
    fn chunk<T: Element>(
        &self,
        keys: Keys<'_, T>,
        head: usize,
        chunk: usize,
        tile: &Tile,
        work: &mut Work,
    ) {
        let start = chunk * CHUNK;
        let local = |keys: Range<usize>| {
            let within = |key: usize| key.clamp(start, start + CHUNK) - start;
            within(keys.start)..within(keys.end)
        };
        let rows = tile.stats.len() / 2;
        let visible_to_any = local(tile.keys.clone());
        for stats in work.stats.chunks_exact_mut(2) {
            stats.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        if visible_to_any.is_empty() {
            return;
        }
        let (k, v) = keys.chunk(head, chunk);
        self.scores(k, tile, rows, visible_to_any.clone(), work.s);
        work.laps.lap(meter::SCORES);
        for (row, s) in work.s.chunks_exact_mut(CHUNK).enumerate().take(rows) {
            let query = tile.queries.start + row / self.heads.group();
            let visible = local(self.visible(query));
            self.add_bias(head, query, row, start, &visible, s);
            if let Some(log_weights) = self.log_weights {
                let keys = start + visible.start..start + visible.end;
                self.kernels
                    .merge(&mut s[visible.clone()], 1.0, &log_weights[keys], 1.0);
            }
            let (max, sum) = self.kernels.softmax(&mut s[visible.clone()]);
            work.stats[2 * row..][..2].copy_from_slice(&[max, sum]);
            if max == f32::NEG_INFINITY {
                s[visible_to_any.clone()].fill(0.0);
            } else {
                s[visible_to_any.start..visible.start].fill(0.0);
                s[visible.end..visible_to_any.end].fill(0.0);
            }
        }
        work.laps.lap(meter::SOFTMAX);
        let padded = keys.layout.padded;
        let s = Strided {
            data: &work.s[visible_to_any.start..],
            stride: CHUNK,
        };
        for (column, width) in keys.layout.strips() {
            let v = Strided {
                data: &v[CHUNK * column + visible_to_any.start * width..],
                stride: width,
            };
            let o = &mut work.o[column..];
            T::matmul(
                self.kernels,
                [rows, width, visible_to_any.len()],
                s,
                v,
                o,
                padded,
            );
        }
    }

    /// Computes the scores of the keys `visible`, rounded out to whole strips and panels.
    fn scores<T: Element>(
        &self,
        k: &[T],
        tile: &Tile,
        rows: usize,
        visible: Range<usize>,
        s: &mut [f32],
    ) {
        let head_dim = self.heads.head_dim;
        let (from, to) = (
            visible.start / STRIP * STRIP,
            visible.end.next_multiple_of(PANEL),
        );
        let q = Strided {
            data: tile.q,
            stride: head_dim,
        };
        for column in (from..to).step_by(STRIP) {
            let k = Strided {
                data: &k[column * head_dim..],
                stride: STRIP,
            };
            let width = STRIP.min(to - column);
            let s = &mut s[column..];
            T::matmul(self.kernels, [rows, width, head_dim], q, k, s, CHUNK);
        }
    }

    /// Adds the bias of a query to its scores `visible`.
    fn add_bias(
        &self,
        head: usize,
        query: usize,
        row: usize,
        start: usize,
        visible: &Range<usize>,
        s: &mut [f32],
    ) {
        if let Some(bias) = self.bias {
            let head = head * self.heads.group() + row % self.heads.group();
            let at = (head * self.q_len + query) * self.kv_len + start;
            for (s, bias) in s[visible.clone()]
                .iter_mut()
                .zip(&bias[at + visible.start..])
            {
                *s += bias;
            }
        }
    }

    /// Computes one tile with many keys. The tasks are chunks, whose results are merged in order afterwards. The
    /// operations on each output are those of [`run_tiles`](Self::run_tiles).
    fn run_by_chunks<T: Element>(
        &self,
        pool: &ThreadPool,
        keys: Keys<'_, T>,
        kv_heads: Range<usize>,
        chunks: usize,
    ) {
        let padded = keys.layout.padded;
        let queries = 0..self.q_len;
        let rows = self.q_len * self.heads.group();
        let size = rows * (padded + 2);
        scratch::with(kv_heads.len() * chunks * size, |partial| {
            let parts = Parts::new(partial);
            pool.run(kv_heads.len() * chunks, |index| {
                // SAFETY: each head and chunk has its own place and task.
                #[allow(unsafe_code)]
                let partial = unsafe { parts.part(index * size..(index + 1) * size) };
                let (head, chunk) = (kv_heads.start + index / chunks, index % chunks);
                let (stats, o) = partial.split_at_mut(2 * rows);
                self.with_tiles(
                    padded,
                    head,
                    std::slice::from_ref(&queries),
                    |tiles, work| {
                        let mut work = Work { o, stats, ..work };
                        self.chunk(keys, head, chunk, &tiles[0], &mut work);
                        work.laps.lap(meter::VALUES);
                    },
                );
            });
            let partial = &*partial;
            pool.run(kv_heads.len() * rows, |index| {
                let (head, row) = (index / rows, index % rows);
                let mut stats = [f32::NEG_INFINITY, 0.0];
                scratch::with(padded, |acc| {
                    acc.fill(0.0);
                    for chunk in 0..chunks {
                        let partial = &partial[(head * chunks + chunk) * size..][..size];
                        let o = &partial[2 * rows + row * padded..][..padded];
                        merge(self.kernels, &mut stats, acc, &partial[2 * row..][..2], o);
                    }
                    finish(
                        acc,
                        stats[1],
                        self.out_row(kv_heads.start + head, &queries, row),
                    );
                });
            });
        });
    }
}

/// Merges the maximum, sum and weighted sum of values of a chunk into those of a row.
fn merge(kernels: &dyn Kernels, stats: &mut [f32], acc: &mut [f32], new: &[f32], o: &[f32]) {
    let (max, sum) = (new[0], new[1]);
    if max == f32::NEG_INFINITY {
        return;
    }
    let top = stats[0].max(max);
    let (alpha, beta) = ((stats[0] - top).exp(), (max - top).exp());
    stats[0] = top;
    stats[1] = stats[1] * alpha + sum * beta;
    kernels.merge(acc, alpha, o, beta);
}

/// Divides the weighted sum of values by the sum of the weights.
fn finish(acc: &[f32], sum: f32, out: &mut [MaybeUninit<f32>]) {
    // The sum is at least 1, the weight of the maximum, unless no key is visible.
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for (out, acc) in out.iter_mut().zip(acc) {
        out.write(acc * inverse);
    }
}
