//! Products with packed weights.

use crate::activation::Activation;
use crate::cpu::{Kernels, Panels, Strided, TILE_TOKENS, Tile};
use crate::format::{BLOCK, Format, Matrix, MatrixShape, PANEL};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts};
use std::ops::Range;

/// What happens to the product on its way out: `out = activation(product + bias)`, or added to `out`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to each token's outputs; `rows` elements.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Whether the result is added to `out` (a residual) instead of replacing it.
    pub accumulate: bool,
}

/// `out = epilogue(x w^T)`, for one token or many.
///
/// With `q8` and `q4` weights the activations are quantized to 8 bits with a scale per token and 128 inputs.
/// An output is bitwise the same for any number of threads and whatever tokens are computed with it.
///
/// # Shapes
/// `x`: `[tokens, w.cols]`; `out`: `[tokens, w.rows]`
///
/// # Panics
/// If the lengths do not fit each other or the bias has not `w.rows` elements.
pub fn linear(pool: &ThreadPool, w: &Matrix, x: &[f32], epilogue: &Epilogue, out: &mut [f32]) {
    let MatrixShape { format, rows, cols } = w.shape();
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), rows, "bias of a matrix with {rows} rows");
    }
    if out.is_empty() && (x.is_empty() || rows == 0) {
        return;
    }
    assert!(
        rows > 0 && out.len().is_multiple_of(rows),
        "{} outputs are not rows of {rows}",
        out.len()
    );
    let tokens = out.len() / rows;
    assert_eq!(
        x.len(),
        tokens * cols,
        "inputs of {tokens} tokens with {cols} each"
    );
    let output = Output {
        epilogue,
        rows,
        out: Parts::new(out),
        kernels: pool.kernels(),
    };
    if format.is_quantized() {
        quantized(pool, w, x, tokens, &output);
    } else {
        float(pool, w, x, tokens, &output);
    }
}

/// Where results go.
struct Output<'a> {
    epilogue: &'a Epilogue<'a>,
    rows: usize,
    out: Parts<'a, f32>,
    kernels: &'static dyn Kernels,
}

impl Output<'_> {
    /// Stores consecutive outputs of one token, from row `first` on; those beyond the last row are dropped.
    /// No two tasks may store the same output.
    fn store(&self, token: usize, first: usize, acc: &mut [f32]) {
        let count = acc.len().min(self.rows - first);
        let acc = &mut acc[..count];
        if let Some(bias) = self.epilogue.bias {
            for (acc, bias) in acc.iter_mut().zip(&bias[first..]) {
                *acc += bias;
            }
        }
        if self.epilogue.activation != Activation::None {
            self.kernels.activate(self.epilogue.activation, acc);
        }
        let at = token * self.rows + first;
        // SAFETY: every output belongs to one task, which holds no other part at this time.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.part(at..at + count) };
        if self.epilogue.accumulate {
            for (out, acc) in out.iter_mut().zip(acc) {
                *out += *acc;
            }
        } else {
            out.copy_from_slice(acc);
        }
    }
}

/// Tokens that a task works on, and panels: the activations of a task's tile and its weights stay in the caches.
const TASK_TOKENS: usize = 256;
const TASK_PANELS: usize = 16;
/// Groups after which a task turns to the next tile, so that a tile's activations stay in the first cache.
const CHUNK_GROUPS: usize = 2;
/// Bytes of weights per task when there is only one tile.
const GEMV_BYTES: usize = 256 * 1024;

/// The quantized activations of all tokens, tile after tile.
struct Quantized<'a> {
    tokens: usize,
    blocks: usize,
    groups: usize,
    quants: &'a [u8],
    scales: &'a [f32],
    offsets: &'a [i32],
}

impl Quantized<'_> {
    fn tile(&self, first: usize) -> Tile<'_> {
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

/// The parts of a task: how many rows of tasks, and the ranges of one.
fn cut(index: usize, pieces: usize, len: usize, size: usize) -> (usize, Range<usize>) {
    let start = index % pieces * size;
    (index / pieces, start..(start + size).min(len))
}

fn quantized(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
    let (blocks, groups) = (w.shape().blocks(), w.shape().groups());
    // One buffer of words: for each block 8 words of quants and an offset, for each group a scale.
    scratch::with(tokens * (blocks * 9 + groups), |buffer| {
        let (quants, rest) = buffer.split_at_mut(tokens * blocks * 8);
        let (scales, offsets) = rest.split_at_mut(tokens * groups);
        let (quants, offsets) = (scratch::as_bytes(quants), scratch::as_ints(offsets));
        quantize(pool, w.shape(), x, tokens, quants, scales, offsets);
        let x = Quantized {
            tokens,
            blocks,
            groups,
            quants,
            scales,
            offsets,
        };
        let panels = w.shape().panels();
        let task_panels = if tokens <= TILE_TOKENS {
            (GEMV_BYTES / w.shape().panel_bytes().max(1))
                .clamp(1, panels.div_ceil(2 * pool.threads()))
        } else {
            TASK_PANELS
        };
        let pieces = panels.div_ceil(task_panels);
        pool.run(pieces * tokens.div_ceil(TASK_TOKENS), |index| {
            let (row, panels) = cut(index, pieces, panels, task_panels);
            let tokens = row * TASK_TOKENS..((row + 1) * TASK_TOKENS).min(tokens);
            quantized_task(w, &x, panels, tokens, output);
        });
    });
}

fn quantize(
    pool: &ThreadPool,
    shape: MatrixShape,
    x: &[f32],
    tokens: usize,
    quants: &mut [u8],
    scales: &mut [f32],
    offsets: &mut [i32],
) {
    let (cols, blocks, groups) = (shape.cols, shape.blocks(), shape.groups());
    if cols == 0 {
        return;
    }
    let code = pool.kernels().code(shape.format);
    let (quants, scales, offsets) = (Parts::new(quants), Parts::new(scales), Parts::new(offsets));
    pool.run_ranges(
        tokens.div_ceil(TILE_TOKENS),
        (16 * 1024 / (TILE_TOKENS * cols)).max(1),
        |tiles| {
            for tile in tiles {
                let first = tile * TILE_TOKENS;
                let count = TILE_TOKENS.min(tokens - first);
                let of_tile = |size: usize| first * size..(first + count) * size;
                // SAFETY: every tile has its own entries, and one task.
                #[allow(unsafe_code)]
                let (quants, scales, offsets) = unsafe {
                    (
                        quants.part(of_tile(blocks * BLOCK)),
                        scales.part(of_tile(groups)),
                        offsets.part(of_tile(blocks)),
                    )
                };
                for t in 0..count {
                    let x = &x[(first + t) * cols..][..cols];
                    let (quants, scales, offsets) = (
                        &mut quants[t * BLOCK..],
                        &mut scales[t..],
                        &mut offsets[t..],
                    );
                    pool.kernels()
                        .quantize(code, x, quants, scales, offsets, count);
                }
            }
        },
    );
}

/// The products of some panels with some tokens.
fn quantized_task(
    w: &Matrix,
    x: &Quantized,
    panels: Range<usize>,
    tokens: Range<usize>,
    output: &Output,
) {
    let count = panels.len();
    let weights = Panels {
        format: w.shape().format,
        bytes: w.panels(panels.start, count),
        panel_bytes: w.shape().panel_bytes(),
        blocks: x.blocks,
    };
    scratch::with(tokens.len() * count * PANEL, |acc| {
        acc.fill(0.0);
        let chunk = if tokens.len() <= TILE_TOKENS {
            x.groups.max(1)
        } else {
            CHUNK_GROUPS
        };
        for start in (0..x.groups).step_by(chunk) {
            let range = start..(start + chunk).min(x.groups);
            for first in tokens.clone().step_by(TILE_TOKENS) {
                let tile = x.tile(first);
                let acc = &mut acc[(first - tokens.start) * count * PANEL..]
                    [..tile.tokens * count * PANEL];
                output.kernels.quantized(weights, range.clone(), tile, acc);
            }
        }
        for (token, acc) in tokens.zip(acc.chunks_exact_mut(count * PANEL)) {
            output.store(token, panels.start * PANEL, acc);
        }
    });
}

/// Tokens below which float weights are used straight from their panels.
const FLOAT_GEMV_TOKENS: usize = 4;
/// Panels that are brought into one matrix for many tokens.
const WIDE: usize = 4;
/// Inputs after which that matrix is done.
const CHUNK_INPUTS: usize = 256;

fn float(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
    let panels = w.shape().panels();
    if tokens < FLOAT_GEMV_TOKENS {
        let task_panels = (GEMV_BYTES / w.shape().panel_bytes().max(1))
            .clamp(8, panels.div_ceil(2 * pool.threads()).max(8));
        let pieces = panels.div_ceil(task_panels);
        return pool.run(pieces * tokens, |index| {
            let (token, panels) = cut(index, pieces, panels, task_panels);
            float_gemv_task(w, x, panels, token, output);
        });
    }
    let pieces = panels.div_ceil(WIDE);
    pool.run(pieces * tokens.div_ceil(TASK_TOKENS), |index| {
        let (row, panels) = cut(index, pieces, panels, WIDE);
        let tokens = row * TASK_TOKENS..((row + 1) * TASK_TOKENS).min(tokens);
        float_task(w, x, panels, tokens, output);
    });
}

fn float_gemv_task(w: &Matrix, x: &[f32], panels: Range<usize>, token: usize, output: &Output) {
    let MatrixShape { format, cols, .. } = w.shape();
    scratch::with(panels.len() * PANEL, |acc| {
        acc.fill(0.0);
        if cols > 0 {
            let bytes = w.panels(panels.start, panels.len());
            let x = &x[token * cols..][..cols];
            output
                .kernels
                .float_gemv(format, bytes, w.shape().panel_bytes(), x, acc);
        }
        output.store(token, panels.start * PANEL, acc);
    });
}

fn float_task(w: &Matrix, x: &[f32], panels: Range<usize>, tokens: Range<usize>, output: &Output) {
    let cols = w.shape().cols;
    let width = panels.len() * PANEL;
    scratch::with(width * (CHUNK_INPUTS + tokens.len()), |buffer| {
        let (b, acc) = buffer.split_at_mut(width * CHUNK_INPUTS);
        if cols == 0 {
            acc.fill(0.0);
        }
        for start in (0..cols).step_by(CHUNK_INPUTS) {
            let inputs = start..(start + CHUNK_INPUTS).min(cols);
            side_by_side(output.kernels, w, panels.clone(), inputs.clone(), b);
            let a = Strided {
                data: &x[tokens.start * cols + start..],
                stride: cols,
            };
            let b = Strided {
                data: b,
                stride: width,
            };
            output.kernels.matmul(
                [tokens.len(), width, inputs.len()],
                a,
                b,
                start > 0,
                acc,
                width,
            );
        }
        for (token, acc) in tokens.zip(acc.chunks_exact_mut(width)) {
            output.store(token, panels.start * PANEL, acc);
        }
    });
}

/// The weights of some panels and inputs in f32, as a row-major matrix `[inputs, panels * 8]`.
fn side_by_side(
    kernels: &dyn Kernels,
    w: &Matrix,
    panels: Range<usize>,
    inputs: Range<usize>,
    b: &mut [f32],
) {
    let width = panels.len() * PANEL;
    let size = w.shape().panel_bytes();
    let mut wide = [0.0; CHUNK_INPUTS * PANEL];
    let wide = &mut wide[..inputs.len() * PANEL];
    for (p, panel) in w
        .panels(panels.start, panels.len())
        .chunks_exact(size)
        .enumerate()
    {
        if w.shape().format == Format::F16 {
            kernels.widen(
                &panel[inputs.start * PANEL * 2..inputs.end * PANEL * 2],
                wide,
            );
        } else {
            let bytes = panel[inputs.start * PANEL * 4..inputs.end * PANEL * 4].chunks_exact(4);
            for (wide, bytes) in wide.iter_mut().zip(bytes) {
                *wide = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        for (b, wide) in b.chunks_exact_mut(width).zip(wide.chunks_exact(PANEL)) {
            b[p * PANEL..][..PANEL].copy_from_slice(wide);
        }
    }
}
