//! Attention with both products in 8-bit integers and the softmax in floats.
//!
//! Keys and values are quantized to q8 matrices, a chunk of [`CHUNK`] positions at a time. Queries and
//! attention weights are the activations that these are multiplied by, so that the products are those of
//! [`linear`](mod@crate::linear).
//! - The mean of the keys is subtracted from them first. This shifts all scores of a query equally and so does
//!   not change its attention weights, but reduces the quantization error (Zhang et al. 2024, SageAttention,
//!   section 4.2, [arXiv:2410.02367](https://arxiv.org/abs/2410.02367)).
//! - The attention weights of a chunk, `exp(score - max)`, are in 0..=1 and the largest is 1. Minus one half,
//!   they use the whole range of a signed byte. The rounding error of their sum is applied to the mean of the
//!   chunk's values, so that many small weights beside a large one are not lost.

use super::layout::CHUNK;
use super::shape::{Heads, Mask, Rows, check_mask, log_weights};
use crate::cpu::{ActivationScheme, Kernels, Panels, TILE_TOKENS, Tile};
use crate::format::{BLOCK, GROUP, MatrixShape, PANEL, QuantFormat};
use crate::meter::{self, Laps, PartTimes};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts, fresh};
use half::f16;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of keys and values that are quantized at a time.
const PACK_BYTES: usize = 8 << 20;

/// At least so many tiles of a call are measured when the parts of attention are, if it has so many.
/// Not all of them, because a tile takes little longer than some readings of the clock.
const MEASURED_TILES: usize = 64;

/// Largest head that [`integer_attention`] supports, in elements.
pub const MAX_INTEGER_HEAD_DIM: usize = 1024;

/// Format of keys and values.
const FORMAT: QuantFormat = QuantFormat::Q8;

/// Quantization of keys and values.
const WEIGHTS: ActivationScheme = ActivationScheme::signed(0);

/// As [`attention`](super::attention()) with a mask of segments, but with 8-bit products. Queries and keys are
/// quantized with a scale per token and head, values with a scale per element of the head and 128 tokens.
/// Attention weights are rounded to 1/254 of the largest.
///
/// # Shapes
/// `q`: `len` rows of `heads * head_dim`; `k`, `v`: `len` rows of `kv_heads * head_dim`; `segments`: bounds of
/// the segments from 0 to `len`; `key_weights`: `[len]`, see [`WeightedMask`](super::WeightedMask);
/// result: `[len, heads * head_dim]`
///
/// # Panics
/// If the heads are impossible or exceed [`MAX_INTEGER_HEAD_DIM`], a slice is too short, the segments do
/// not ascend from 0 to `len`, or a weight is not finite and positive.
#[allow(clippy::too_many_arguments)]
pub fn integer_attention(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    k: Rows,
    v: Rows,
    len: usize,
    segments: &[usize],
    key_weights: Option<&[f32]>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    assert!(
        heads.head_dim <= MAX_INTEGER_HEAD_DIM,
        "heads of {} elements",
        heads.head_dim
    );
    let width = heads.heads * heads.head_dim;
    let kv_width = heads.kv_heads * heads.head_dim;
    q.check("queries", len, width);
    k.check("keys", len, kv_width);
    v.check("values", len, kv_width);
    check_mask(Mask::Segments(segments), len, len);
    let log_weights = key_weights.map(|weights| log_weights(weights, len));
    let plan = Plan::new(heads, segments);
    let head_bytes = plan.chunks.len() * plan.chunk_bytes();
    let batch = (PACK_BYTES / head_bytes.max(1)).clamp(1, heads.kv_heads);
    let head_means = plan.segments.len() * heads.head_dim;
    let floats = batch * (head_bytes / 4 + head_means);
    let fill = |out: &Parts<MaybeUninit<f32>>| {
        scratch::with(floats, |buffer| {
            let (packed, means) = buffer.split_at_mut(batch * head_bytes / 4);
            for first in (0..heads.kv_heads).step_by(batch) {
                let count = batch.min(heads.kv_heads - first);
                let parts = Parts::new(means);
                pool.run(count * plan.segments.len(), |index| {
                    let (head, segment) =
                        (index / plan.segments.len(), index % plan.segments.len());
                    let at = index * heads.head_dim;
                    // SAFETY: each head and segment has its own place and task.
                    #[allow(unsafe_code)]
                    let mean = unsafe { parts.part(at..at + heads.head_dim) };
                    let column = (first + head) * heads.head_dim;
                    mean_of_rows(k, column, plan.segments[segment].clone(), mean);
                });
                let means = &*means;
                let parts = Parts::new(scratch::as_bytes(packed));
                pool.run(count * plan.chunks.len(), |index| {
                    let (head, chunk) = (
                        index / plan.chunks.len(),
                        &plan.chunks[index % plan.chunks.len()],
                    );
                    let at = index * plan.chunk_bytes();
                    // SAFETY: each head and chunk has its own place and task.
                    #[allow(unsafe_code)]
                    let packed = unsafe { parts.part(at..at + plan.chunk_bytes()) };
                    let mean = &means
                        [(head * plan.segments.len() + chunk.segment) * heads.head_dim..]
                        [..heads.head_dim];
                    let column = (first + head) * heads.head_dim;
                    plan.pack(pool.kernels(), k, v, column, &chunk.positions, mean, packed);
                });
                let packed = &*scratch::as_bytes(packed);
                let group = heads.group();
                let times = PartTimes::start();
                let tasks = count * group * plan.tiles.len();
                let interval = (tasks / MEASURED_TILES).clamp(1, 8);
                pool.run(tasks, |index| {
                    let (head, tile) = (
                        index / plan.tiles.len(),
                        &plan.tiles[index % plan.tiles.len()],
                    );
                    let step = Step {
                        plan: &plan,
                        kernels: pool.kernels(),
                        packed: &packed[head / group * head_bytes..][..head_bytes],
                        q,
                        column: (first * group + head) * heads.head_dim,
                        width,
                        log_weights: log_weights.as_deref(),
                        scale,
                        out,
                    };
                    let measured = index.is_multiple_of(interval);
                    step.tile(tile, Laps::new(times.as_ref().filter(|_| measured)));
                });
                if let Some(times) = times {
                    times.finish();
                }
            }
        })
    };
    // SAFETY: the steps store the results of all queries and heads.
    #[allow(unsafe_code)]
    unsafe {
        fresh(len * width, fill)
    }
}

/// Computes the mean of a head over `positions`.
fn mean_of_rows(rows: Rows, column: usize, positions: Range<usize>, mean: &mut [f32]) {
    let (count, width) = (positions.len() as f32, mean.len());
    mean.fill(0.0);
    for position in positions {
        for (mean, x) in mean.iter_mut().zip(rows.at(position, column, width)) {
            *mean += x;
        }
    }
    for mean in mean {
        *mean /= count;
    }
}

/// Consecutive keys that are quantized together.
struct Chunk {
    segment: usize,
    positions: Range<usize>,
}

/// Consecutive queries and the chunks visible to them.
struct QueryTile {
    queries: Range<usize>,
    chunks: Range<usize>,
}

/// Division of the work.
struct Plan {
    head_dim: usize,
    /// Segments that are not empty.
    segments: Vec<Range<usize>>,
    chunks: Vec<Chunk>,
    tiles: Vec<QueryTile>,
}

impl Plan {
    fn new(heads: Heads, ends: &[usize]) -> Self {
        let segments: Vec<Range<usize>> = ends
            .windows(2)
            .map(|pair| pair[0]..pair[1])
            .filter(|segment| !segment.is_empty())
            .collect();
        let (mut chunks, mut tiles) = (Vec::new(), Vec::new());
        for (index, segment) in segments.iter().enumerate() {
            let first = chunks.len();
            chunks.extend(pieces(segment, CHUNK).map(|positions| Chunk {
                segment: index,
                positions,
            }));
            let chunks = first..chunks.len();
            tiles.extend(pieces(segment, TILE_TOKENS).map(|queries| QueryTile {
                queries,
                chunks: chunks.clone(),
            }));
        }
        Self {
            head_dim: heads.head_dim,
            segments,
            chunks,
            tiles,
        }
    }

    /// Matrix of the keys of a chunk.
    fn keys(&self, positions: usize) -> MatrixShape {
        MatrixShape::new(FORMAT.into(), positions, self.head_dim)
    }

    /// Matrix of the values of a chunk, transposed.
    fn values(&self, positions: usize) -> MatrixShape {
        MatrixShape::new(FORMAT.into(), self.head_dim, positions)
    }

    /// Elements of a head, rounded up to whole panels.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    fn keys_bytes(&self) -> usize {
        let shape = self.keys(CHUNK);
        shape.panels() * shape.panel_bytes()
    }

    fn values_bytes(&self) -> usize {
        let shape = self.values(CHUNK);
        shape.panels() * shape.panel_bytes()
    }

    /// Bytes of a chunk: keys, values, and the mean of the values in floats.
    fn chunk_bytes(&self) -> usize {
        self.keys_bytes() + self.values_bytes() + 4 * self.padded().next_multiple_of(BLOCK / 2)
    }

    /// Quantizes the keys and values of a chunk.
    #[allow(clippy::too_many_arguments)]
    fn pack(
        &self,
        kernels: &dyn Kernels,
        k: Rows,
        v: Rows,
        column: usize,
        positions: &Range<usize>,
        mean: &[f32],
        packed: &mut [u8],
    ) {
        let (keys, rest) = packed.split_at_mut(self.keys_bytes());
        let (values, value_means) = rest.split_at_mut(self.values_bytes());
        let head_dim = self.head_dim;
        let len = positions.len();
        scratch::with(CHUNK * head_dim + head_dim, |floats| {
            let (transposed, row) = floats.split_at_mut(CHUNK * head_dim);
            let mut matrix = Packer::new(self.keys(len), keys);
            for (i, position) in positions.clone().enumerate() {
                let key = k.at(position, column, head_dim);
                for ((row, key), mean) in row.iter_mut().zip(key).zip(mean) {
                    *row = key - mean;
                }
                matrix.row(kernels, i, row);
                let value = v.at(position, column, head_dim);
                for (d, value) in value.iter().enumerate() {
                    transposed[d * CHUNK + i] = *value;
                }
            }
            let mut matrix = Packer::new(self.values(len), values);
            let means = value_means.chunks_exact_mut(4);
            for ((d, values), mean) in transposed.chunks_exact(CHUNK).enumerate().zip(means) {
                let sum = matrix.row(kernels, d, &values[..len]);
                mean.copy_from_slice(&(sum / len as f32).to_le_bytes());
            }
        });
    }
}

/// Divides a range into pieces of `size`.
fn pieces(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .clone()
        .step_by(size)
        .map(move |start| start..(start + size).min(end))
}

/// Writer of the rows of a q8 matrix.
struct Packer<'a> {
    shape: MatrixShape,
    bytes: &'a mut [u8],
}

impl<'a> Packer<'a> {
    fn new(shape: MatrixShape, bytes: &'a mut [u8]) -> Self {
        let bytes = &mut bytes[..shape.panels() * shape.panel_bytes()];
        // Padding rows and inputs are zero.
        bytes.fill(0);
        Self { shape, bytes }
    }

    /// Quantizes a row and returns the sum of the dequantized values.
    fn row(&mut self, kernels: &dyn Kernels, row: usize, x: &[f32]) -> f32 {
        const MAX_BLOCKS: usize = MAX_INTEGER_HEAD_DIM / BLOCK;
        let blocks = self.shape.blocks();
        let (mut quants, mut scales, mut offsets) =
            ([0; MAX_BLOCKS * BLOCK], [0.0; MAX_BLOCKS], [0; MAX_BLOCKS]);
        let panel = &mut self.bytes[row / PANEL * self.shape.panel_bytes()..];
        let r = row % PANEL;
        let mut total = 0.0;
        // Group by group, because each has its own scale.
        for (g, x) in x.chunks(GROUP * BLOCK).enumerate() {
            let first = g * GROUP;
            let sum = kernels.quantize(
                WEIGHTS,
                x,
                &mut quants[first * BLOCK..],
                &mut scales[g..],
                &mut offsets[first..],
                1,
            );
            let scale = f16::from_f32(scales[g]);
            total += sum as f32 * scale.to_f32();
            panel[2 * (g * PANEL + r)..][..2].copy_from_slice(&scale.to_le_bytes());
        }
        let start = FORMAT.offsets(blocks).quants;
        let words = panel[start..].chunks_exact_mut(4 * PANEL);
        for (to, from) in words.zip(quants[..blocks * BLOCK].chunks_exact(4)) {
            to[4 * r..][..4].copy_from_slice(from);
        }
        total
    }
}

/// Operands common to the tiles of a head.
struct Step<'a> {
    plan: &'a Plan,
    kernels: &'static dyn Kernels,
    /// Chunks of the key head.
    packed: &'a [u8],
    q: Rows<'a>,
    /// Column of the query head in the rows of queries and results.
    column: usize,
    width: usize,
    /// Logarithms of the weights of the keys.
    log_weights: Option<&'a [f32]>,
    scale: f32,
    out: &'a Parts<'a, MaybeUninit<f32>>,
}

/// Quantized activations of a tile.
struct Activations<'a> {
    tokens: usize,
    quants: &'a mut [u8],
    scales: &'a mut [f32],
    offsets: &'a mut [i32],
}

impl<'a> Activations<'a> {
    /// Size in 32-bit words for `blocks` blocks and `groups` groups per token.
    fn words(blocks: usize, groups: usize) -> usize {
        TILE_TOKENS * (blocks * (BLOCK / 4 + 1) + groups)
    }

    fn new(tokens: usize, blocks: usize, buffer: &'a mut [f32]) -> Self {
        let (quants, rest) = buffer.split_at_mut(TILE_TOKENS * blocks * BLOCK / 4);
        let (offsets, scales) = rest.split_at_mut(TILE_TOKENS * blocks);
        Self {
            tokens,
            quants: scratch::as_bytes(quants),
            scales,
            offsets: scratch::as_ints(offsets),
        }
    }

    /// Quantizes the activations of a token and returns the sum of the quants.
    fn set(&mut self, kernels: &dyn Kernels, token: usize, x: &[f32]) -> i32 {
        let scheme = kernels.activation_scheme(FORMAT);
        let (quants, offsets) = (
            &mut self.quants[token * BLOCK..],
            &mut self.offsets[token..],
        );
        let scales = &mut self.scales[token..];
        kernels.quantize(scheme, x, quants, scales, offsets, self.tokens)
    }

    fn tile(&self) -> Tile<'_> {
        Tile {
            tokens: self.tokens,
            quants: self.quants,
            scales: self.scales,
            offsets: self.offsets,
        }
    }
}

impl Step<'_> {
    /// Computes the results of a tile.
    fn tile(&self, tile: &QueryTile, mut laps: Laps) {
        let (tokens, padded) = (tile.queries.len(), self.plan.padded());
        let keys = self.plan.keys(CHUNK);
        let (query_words, weight_words) = (
            Activations::words(keys.blocks(), keys.groups()),
            Activations::words(CHUNK / BLOCK, 1),
        );
        let size = query_words + weight_words + tokens * (CHUNK + 2 * padded + 2);
        scratch::with(size, |buffer| {
            let (queries, buffer) = buffer.split_at_mut(query_words);
            let (weights, buffer) = buffer.split_at_mut(weight_words);
            let (scores, buffer) = buffer.split_at_mut(tokens * CHUNK);
            let (product, buffer) = buffer.split_at_mut(tokens * padded);
            let (acc, stats) = buffer.split_at_mut(tokens * padded);
            let mut queries = Activations::new(tokens, keys.blocks(), queries);
            for (token, query) in tile.queries.clone().enumerate() {
                let query = self.q.at(query, self.column, self.plan.head_dim);
                queries.set(self.kernels, token, query);
            }
            for scale in &mut queries.scales[..tokens * keys.groups()] {
                *scale *= self.scale;
            }
            acc.fill(0.0);
            for stats in stats.chunks_exact_mut(2) {
                stats.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
            }
            for chunk in tile.chunks.clone() {
                let weights = &mut *weights;
                self.chunk(
                    chunk, &queries, weights, scores, product, acc, stats, &mut laps,
                );
            }
            for (token, query) in tile.queries.clone().enumerate() {
                let at = query * self.width + self.column;
                // SAFETY: each query and head belongs to one task, which takes its output once.
                #[allow(unsafe_code)]
                let out = unsafe { self.out.part(at..at + self.plan.head_dim) };
                let inverse = 1.0 / stats[2 * token + 1];
                for (out, acc) in out.iter_mut().zip(&acc[token * padded..]) {
                    out.write(acc * inverse);
                }
            }
        });
    }

    /// Merges the results of a chunk into those of a tile.
    #[allow(clippy::too_many_arguments)]
    fn chunk(
        &self,
        index: usize,
        queries: &Activations,
        weights: &mut [f32],
        scores: &mut [f32],
        product: &mut [f32],
        acc: &mut [f32],
        stats: &mut [f32],
        laps: &mut Laps,
    ) {
        let plan = self.plan;
        let (tokens, padded) = (queries.tokens, plan.padded());
        let positions = plan.chunks[index].positions.clone();
        let len = positions.len();
        let packed = &self.packed[index * plan.chunk_bytes()..][..plan.chunk_bytes()];
        let (keys, rest) = packed.split_at(plan.keys_bytes());
        let (values, mean) = rest.split_at(plan.values_bytes());

        let shape = plan.keys(len);
        let width = shape.panels() * PANEL;
        let scores = &mut scores[..tokens * width];
        match self.log_weights {
            None => scores.fill(0.0),
            Some(log_weights) => {
                for scores in scores.chunks_exact_mut(width) {
                    scores[..len].copy_from_slice(&log_weights[positions.clone()]);
                    scores[len..].fill(0.0);
                }
            }
        }
        let keys = panels(shape, keys);
        self.kernels
            .quantized(keys, 0..shape.groups(), queries.tile(), scores);
        laps.lap(meter::SCORES);

        let shape = plan.values(len);
        let mut weights = Activations::new(tokens, shape.blocks(), weights);
        // For each token: rounding error of the sum of its attention weights, maximum score, sum.
        let mut rest = [[0.0; 3]; TILE_TOKENS];
        for ((token, scores), rest) in scores.chunks_exact_mut(width).enumerate().zip(&mut rest) {
            let scores = &mut scores[..len];
            let (max, sum) = self.kernels.softmax(scores);
            for weight in &mut *scores {
                *weight -= 0.5;
            }
            let quants = weights.set(self.kernels, token, scores);
            *rest = [sum - quants as f32 * weights.scales[token], max, sum];
        }
        laps.lap(meter::SOFTMAX);
        product.fill(0.0);
        self.kernels
            .quantized(panels(shape, values), 0..1, weights.tile(), product);

        let mut value_mean = [0.0; MAX_INTEGER_HEAD_DIM];
        let value_mean = &mut value_mean[..padded];
        for (mean, bytes) in value_mean
            .iter_mut()
            .zip(mean.chunks_exact(4))
            .take(plan.head_dim)
        {
            *mean = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let rows = acc.chunks_exact_mut(padded).zip(stats.chunks_exact_mut(2));
        for (((acc, stats), product), [rest, max, sum]) in
            rows.zip(product.chunks_exact(padded)).zip(rest)
        {
            let top = if max > stats[0] { max } else { stats[0] };
            let (alpha, beta) = ((stats[0] - top).exp(), (max - top).exp());
            stats[0] = top;
            stats[1] = stats[1] * alpha + sum * beta;
            self.kernels.merge(acc, alpha, product, beta);
            self.kernels.merge(acc, 1.0, value_mean, rest * beta);
        }
        laps.lap(meter::VALUES);
    }
}

/// Views a matrix at the beginning of some bytes.
fn panels(shape: MatrixShape, bytes: &[u8]) -> Panels<'_> {
    Panels {
        format: FORMAT,
        bytes: &bytes[..shape.panels() * shape.panel_bytes()],
        panel_bytes: shape.panel_bytes(),
        blocks: shape.blocks(),
    }
}
