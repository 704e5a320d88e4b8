//! Products with q4 and q8 weights. The activations are quantized, too.

use super::activations::{Activations, quantize, with_activations};
use super::epilogue::Output;
use super::schedule::{grid_task, guided};
use crate::cpu::{Kernels, Panels, TILE_TOKENS, Tile};
use crate::format::{Matrix, PANEL, QuantFormat};
use crate::pool::ThreadPool;
use crate::scratch;
use std::ops::Range;

/// Panels per task.
pub(super) const TASK_PANELS: usize = 16;
/// Largest number of tokens with which a product is bound by memory bandwidth.
pub const FEW_TOKENS: usize = 8;
/// Fewest bytes of weights per task with few tokens.
const LEAST_BYTES: usize = 48 * 1024;

/// Quantizes the activations and multiplies all panels by all tokens. `format` is that of `w`.
pub(super) fn quantized(
    pool: &ThreadPool,
    format: QuantFormat,
    w: &Matrix,
    x: &[f32],
    tokens: usize,
    output: &Output,
) {
    with_activations(
        pool.kernels(),
        format,
        w.shape().blocks(),
        tokens,
        |quantizer| quantize(pool, quantizer, x, w.shape().cols),
        |x| multiply(pool, format, w, x, output),
    );
}

/// Multiplies all panels by all tokens and stores the outputs.
pub(super) fn multiply(
    pool: &ThreadPool,
    format: QuantFormat,
    w: &Matrix,
    x: &Activations,
    output: &Output,
) {
    let panels = w.shape().panels();
    if x.tokens <= FEW_TOKENS {
        let least = (LEAST_BYTES / w.shape().panel_bytes().max(1)).max(1);
        let starts = guided(panels, least, pool.threads());
        return pool.run(starts.len() - 1, |index| {
            task(format, w, x, starts[index]..starts[index + 1], 0, output);
        });
    }
    let tiles = x.tokens.div_ceil(TILE_TOKENS);
    // With few tasks, smaller ones shorten the wait for the last one.
    let few = panels.div_ceil(TASK_PANELS) * tiles < 16 * pool.threads();
    let task_panels = if few { TASK_PANELS / 2 } else { TASK_PANELS };
    let pieces = panels.div_ceil(task_panels);
    pool.run(pieces * tiles, |index| {
        let (tile, panels) = grid_task(index, pieces, panels, task_panels);
        task(format, w, x, panels, tile * TILE_TOKENS, output);
    });
}

/// Multiplies some panels by the tile that begins with token `first` and stores the outputs.
fn task(
    format: QuantFormat,
    w: &Matrix,
    x: &Activations,
    panels: Range<usize>,
    first: usize,
    output: &Output,
) {
    let tile = x.tile(first);
    let width = panels.len() * PANEL;
    scratch::with(tile.tokens * width, |acc| {
        accumulate(output.kernels, format, w, tile, panels.clone(), acc);
        for (token, acc) in (first..).zip(acc.chunks_exact_mut(width)) {
            output.store(token, panels.start * PANEL, acc);
        }
    });
}

/// Multiplies some panels by a tile: `acc[token * panels * 8 + row]`.
pub(super) fn accumulate(
    kernels: &dyn Kernels,
    format: QuantFormat,
    w: &Matrix,
    tile: Tile,
    panels: Range<usize>,
    acc: &mut [f32],
) {
    let groups = w.shape().groups();
    let weights = Panels {
        format,
        bytes: w.panels(panels.start, panels.len()),
        panel_bytes: w.shape().panel_bytes(),
        blocks: w.shape().blocks(),
    };
    acc.fill(0.0);
    if tile.tokens <= FEW_TOKENS && groups > 0 {
        return kernels.quantized(weights, 0..groups, tile, acc);
    }
    // Group by group, so that the tile's activations stay in the L1 cache for all panels.
    for group in 0..groups {
        kernels.quantized(weights, group..group + 1, tile, acc);
    }
}
