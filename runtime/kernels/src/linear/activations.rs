//! Quantized activations of all tokens of a product.

use super::schedule::grid_task;
use crate::cpu::{ActivationScheme, Kernels, TILE_TOKENS, Tile};
use crate::format::{BLOCK, GROUP, QuantFormat};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::ops::Range;

/// Quantized activations of all tokens, tile by tile.
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

/// Writer of [`Activations`].
pub(super) struct Quantizer<'a> {
    kernels: &'static dyn Kernels,
    scheme: ActivationScheme,
    tokens: usize,
    blocks: usize,
    groups: usize,
    quants: Parts<'a, u8>,
    scales: Parts<'a, f32>,
    offsets: Parts<'a, i32>,
}

impl Quantizer<'_> {
    /// Quantizes the inputs of `groups` for some tokens of the tile that begins with token `first`. `rows`
    /// yields the index of each token in the tile and its inputs. No two tasks may write the same groups of
    /// the same tile at a time.
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
        // SAFETY: these entries belong to these groups of this tile only, which one task writes at a time.
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
                .quantize(self.scheme, x, quants, scales, offsets, tokens);
        }
    }
}

/// Provides memory for the quantized activations of a product with a matrix of `blocks` blocks per row.
/// `fill` must write all of them; then `then` is called with them.
pub(super) fn with_activations(
    kernels: &'static dyn Kernels,
    format: QuantFormat,
    blocks: usize,
    tokens: usize,
    fill: impl FnOnce(&Quantizer),
    then: impl FnOnce(&Activations),
) {
    let groups = blocks.div_ceil(GROUP);
    // One buffer of 32-bit words: 8 words of quants and an offset per block, a scale per group.
    scratch::with(tokens * (blocks * 9 + groups), |buffer| {
        let (quants, rest) = buffer.split_at_mut(tokens * blocks * 8);
        let (scales, offsets) = rest.split_at_mut(tokens * groups);
        let (quants, offsets) = (scratch::as_bytes(quants), scratch::as_ints(offsets));
        fill(&Quantizer {
            kernels,
            scheme: kernels.activation_scheme(format),
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

/// Inputs that make a task worth another thread.
const QUANTIZE_GRAIN: usize = 16 * 1024;

/// Quantizes all of `x`, whose rows have `cols` inputs.
pub(super) fn quantize(pool: &ThreadPool, quantizer: &Quantizer, x: &[f32], cols: usize) {
    let (tokens, groups) = (quantizer.tokens, quantizer.groups);
    // A task is some groups of a tile.
    let rows = TILE_TOKENS.min(tokens).max(1);
    let task_groups = (QUANTIZE_GRAIN / (rows * GROUP * BLOCK)).max(1);
    let pieces = groups.div_ceil(task_groups);
    pool.run(pieces * tokens.div_ceil(TILE_TOKENS), |index| {
        let (tile, groups) = grid_task(index, pieces, groups, task_groups);
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
