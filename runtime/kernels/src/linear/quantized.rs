//! Products with q4 and q8 weights: the activations are quantized, too.

use super::{Output, cut};
use crate::cpu::{ActivationCode, Kernels, Panels, TILE_TOKENS, Tile};
use crate::format::{BLOCK, GROUP, Matrix, MatrixShape, PANEL};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::ops::Range;

/// Panels of a task.
pub(super) const TASK_PANELS: usize = 16;
/// Tokens at most with which a product is bound by the memory's bandwidth.
pub(super) const FEW_TOKENS: usize = 8;
/// Bytes of weights that are worth a task then.
const LEAST_BYTES: usize = 48 * 1024;

/// The product of all panels with all tokens.
pub(super) fn quantized(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
    with_activations(
        pool.kernels(),
        w.shape(),
        tokens,
        |quantizer| quantize(pool, quantizer, x, w.shape().cols),
        |x| multiply(pool, w, x, output),
    );
}

/// The quantized activations of all tokens, tile after tile.
pub(super) struct Activations<'a> {
    pub(super) tokens: usize,
    blocks: usize,
    groups: usize,
    quants: &'a [u8],
    scales: &'a [f32],
    offsets: &'a [i32],
}

impl Activations<'_> {
    /// The tile that begins with token `first`.
    pub(super) fn tile(&self, first: usize) -> Tile<'_> {
        let tokens = TILE_TOKENS.min(self.tokens - first);
        let blocks = first * self.blocks..(first + tokens) * self.blocks;
        Tile {
            tokens,
            quants: &self.quants[blocks.start * BLOCK..blocks.end * BLOCK],
            scales: &self.scales[first * self.groups..(first + tokens) * self.groups],
            offsets: &self.offsets[blocks],
        }
    }
}

/// Writes [`Activations`].
pub(super) struct Quantizer<'a> {
    kernels: &'static dyn Kernels,
    code: ActivationCode,
    tokens: usize,
    blocks: usize,
    groups: usize,
    quants: Parts<'a, u8>,
    scales: Parts<'a, f32>,
    offsets: Parts<'a, i32>,
}

impl Quantizer<'_> {
    /// Quantizes the inputs of `groups` for some tokens of the tile that begins with token `first`: `rows` yields each
    /// token's number in the tile and these inputs. No two tasks may write the same groups of the same tile at a time.
    pub(super) fn put<'x>(
        &self,
        first: usize,
        groups: Range<usize>,
        rows: impl Iterator<Item = (usize, &'x [f32])>,
    ) {
        let tokens = TILE_TOKENS.min(self.tokens - first);
        let blocks = groups.start * GROUP..(groups.end * GROUP).min(self.blocks);
        let part = |all: usize, part: &Range<usize>| {
            first * all + part.start * tokens..first * all + part.end * tokens
        };
        let bytes = part(self.blocks, &blocks);
        // SAFETY: these entries belong to these groups of this tile alone, which one task writes at a time.
        #[allow(unsafe_code)]
        let (quants, scales, offsets) = unsafe {
            (
                self.quants.part(bytes.start * BLOCK..bytes.end * BLOCK),
                self.scales.part(part(self.groups, &groups)),
                self.offsets.part(bytes),
            )
        };
        for (t, x) in rows {
            let (quants, scales, offsets) = (
                &mut quants[t * BLOCK..],
                &mut scales[t..],
                &mut offsets[t..],
            );
            self.kernels
                .quantize(self.code, x, quants, scales, offsets, tokens);
        }
    }
}

/// Lends memory for the quantized activations of a product with a matrix of `shape`: `fill` must write all of them, then
/// `then` uses them.
pub(super) fn with_activations(
    kernels: &'static dyn Kernels,
    shape: MatrixShape,
    tokens: usize,
    fill: impl FnOnce(&Quantizer),
    then: impl FnOnce(&Activations),
) {
    let (blocks, groups) = (shape.blocks(), shape.groups());
    // One buffer of words: for each block 8 words of quants and an offset, for each group a scale.
    scratch::with(tokens * (blocks * 9 + groups), |buffer| {
        let (quants, rest) = buffer.split_at_mut(tokens * blocks * 8);
        let (scales, offsets) = rest.split_at_mut(tokens * groups);
        let (quants, offsets) = (scratch::as_bytes(quants), scratch::as_ints(offsets));
        fill(&Quantizer {
            kernels,
            code: kernels.code(shape.format),
            tokens,
            blocks,
            groups,
            quants: Parts::new(quants),
            scales: Parts::new(scales),
            offsets: Parts::new(offsets),
        });
        then(&Activations {
            tokens,
            blocks,
            groups,
            quants,
            scales,
            offsets,
        });
    });
}

/// Inputs that make a task worth handing to another thread.
const QUANTIZE_GRAIN: usize = 16 * 1024;

/// Quantizes all of `x`, rows of `cols`.
pub(super) fn quantize(pool: &ThreadPool, quantizer: &Quantizer, x: &[f32], cols: usize) {
    let (tokens, groups) = (quantizer.tokens, quantizer.groups);
    // The tasks are some groups of a tile.
    let task_groups = (QUANTIZE_GRAIN / (TILE_TOKENS.min(tokens) * GROUP * BLOCK)).max(1);
    let pieces = groups.div_ceil(task_groups);
    pool.run(pieces * tokens.div_ceil(TILE_TOKENS), |index| {
        let (tile, groups) = cut(index, pieces, groups, task_groups);
        let first = tile * TILE_TOKENS;
        let count = TILE_TOKENS.min(tokens - first);
        let inputs = groups.start * GROUP * BLOCK..(groups.end * GROUP * BLOCK).min(cols);
        let rows = x[first * cols..][..count * cols].chunks_exact(cols);
        quantizer.put(
            first,
            groups,
            rows.map(|row| &row[inputs.clone()]).enumerate(),
        );
    });
}

/// Stores all outputs of all tokens.
pub(super) fn multiply(pool: &ThreadPool, w: &Matrix, x: &Activations, output: &Output) {
    let panels = w.shape().panels();
    if x.tokens <= FEW_TOKENS {
        let least = (LEAST_BYTES / w.shape().panel_bytes().max(1)).max(1);
        let starts = shares(panels, least, pool.threads());
        return pool.run(starts.len() - 1, |index| {
            task(w, x, starts[index]..starts[index + 1], 0, output);
        });
    }
    let tiles = x.tokens.div_ceil(TILE_TOKENS);
    // Smaller tasks where there are so few that threads would wait for the last one.
    let few = panels.div_ceil(TASK_PANELS) * tiles < 16 * pool.threads();
    let task_panels = if few { TASK_PANELS / 2 } else { TASK_PANELS };
    let pieces = panels.div_ceil(task_panels);
    pool.run(pieces * tiles, |index| {
        let (tile, panels) = cut(index, pieces, panels, task_panels);
        task(w, x, panels, tile * TILE_TOKENS, output);
    });
}

/// Cuts `0..len` into shares that become smaller and smaller, so that all threads end at the same time although one may
/// have begun late: each is half of what every thread would get of the rest, but at least `least`, and even where possible,
/// because some kernels take panels two by two. Returns where they begin, and `len`.
pub(super) fn shares(len: usize, least: usize, threads: usize) -> Vec<usize> {
    let mut starts = vec![0];
    let mut start = 0;
    while start < len {
        let share = ((len - start) / (2 * threads)).max(least);
        start = (start + share.next_multiple_of(2)).min(len);
        starts.push(start);
    }
    starts
}

/// The products of some panels with the tile that begins with token `first`.
fn task(w: &Matrix, x: &Activations, panels: Range<usize>, first: usize, output: &Output) {
    let tile = x.tile(first);
    let width = panels.len() * PANEL;
    scratch::with(tile.tokens * width, |acc| {
        accumulate(output.kernels, w, tile, panels.clone(), acc);
        for (token, acc) in (first..).zip(acc.chunks_exact_mut(width)) {
            output.store(token, panels.start * PANEL, acc);
        }
    });
}

/// The products of some panels with a tile: `acc[token * panels * 8 + row]`.
pub(super) fn accumulate(
    kernels: &dyn Kernels,
    w: &Matrix,
    tile: Tile,
    panels: Range<usize>,
    acc: &mut [f32],
) {
    let groups = w.shape().groups();
    let weights = Panels {
        format: w.shape().format,
        bytes: w.panels(panels.start, panels.len()),
        panel_bytes: w.shape().panel_bytes(),
        blocks: w.shape().blocks(),
    };
    acc.fill(0.0);
    if tile.tokens <= FEW_TOKENS && groups > 0 {
        return kernels.quantized(weights, 0..groups, tile, acc);
    }
    // Group by group, so that the tile's activations stay in the first cache for all panels.
    for group in 0..groups {
        kernels.quantized(weights, group..group + 1, tile, acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_cover_everything_once(len in 0usize..5000, least in 1usize..40, threads in 1usize..7) {
            let starts = shares(len, least, threads);
            prop_assert_eq!((starts[0], *starts.last().unwrap()), (0, len));
            let sizes: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            for (i, size) in sizes.iter().enumerate() {
                let last = i + 1 == sizes.len();
                prop_assert!(last || (*size >= least && size % 2 == 0), "{:?}", sizes);
            }
            prop_assert!(sizes.is_sorted_by(|a, b| a >= b), "{:?}", sizes);
        }
    }
}
