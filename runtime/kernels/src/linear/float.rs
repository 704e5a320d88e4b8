//! Products with f16 and f32 weights.

use super::epilogue::Output;
use super::schedule::grid_task;
use crate::cpu::{Kernels, Strided};
use crate::format::{FloatFormat, Matrix, PANEL};
use crate::pool::ThreadPool;
use crate::scratch;
use std::ops::Range;

/// Number of tokens from which panels are first copied to a matrix of floats.
const FLOAT_GEMV_TOKENS: usize = 4;
/// Tokens per task.
const TASK_TOKENS: usize = 256;
/// Bytes of weights per task with few tokens.
const GEMV_BYTES: usize = 256 * 1024;
/// Panels per task with many tokens: they are copied side by side to one matrix.
const WIDE: usize = 4;
/// Inputs of that matrix.
const CHUNK_INPUTS: usize = 256;

/// Multiplies all panels by all tokens. `format` is that of `w`.
pub(super) fn float(
    pool: &ThreadPool,
    format: FloatFormat,
    w: &Matrix,
    x: &[f32],
    tokens: usize,
    output: &Output,
) {
    let panels = w.shape().panels();
    if tokens < FLOAT_GEMV_TOKENS {
        let task_panels = (GEMV_BYTES / w.shape().panel_bytes().max(1))
            .clamp(8, panels.div_ceil(2 * pool.threads()).max(8));
        return pool.run(panels.div_ceil(task_panels), |index| {
            let panels = index * task_panels..panels.min((index + 1) * task_panels);
            // The first token brings the weights to the cache for the others.
            for token in 0..tokens {
                gemv_task(format, w, x, panels.clone(), token, output);
            }
        });
    }
    let pieces = panels.div_ceil(WIDE);
    pool.run(pieces * tokens.div_ceil(TASK_TOKENS), |index| {
        let (row, panels) = grid_task(index, pieces, panels, WIDE);
        let tokens = row * TASK_TOKENS..((row + 1) * TASK_TOKENS).min(tokens);
        matmul_task(format, w, x, panels, tokens, output);
    });
}

/// Multiplies some panels by one token.
fn gemv_task(
    format: FloatFormat,
    w: &Matrix,
    x: &[f32],
    panels: Range<usize>,
    token: usize,
    output: &Output,
) {
    let cols = w.shape().cols;
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

/// Multiplies some panels by some tokens.
fn matmul_task(
    format: FloatFormat,
    w: &Matrix,
    x: &[f32],
    panels: Range<usize>,
    tokens: Range<usize>,
    output: &Output,
) {
    let cols = w.shape().cols;
    let width = panels.len() * PANEL;
    scratch::with(width * (CHUNK_INPUTS + tokens.len()), |buffer| {
        let (b, acc) = buffer.split_at_mut(width * CHUNK_INPUTS);
        if cols == 0 {
            acc.fill(0.0);
        }
        for start in (0..cols).step_by(CHUNK_INPUTS) {
            let inputs = start..(start + CHUNK_INPUTS).min(cols);
            copy_panels(output.kernels, format, w, panels.clone(), inputs.clone(), b);
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

/// Converts the weights of some panels and inputs to a row-major f32 matrix `[inputs, panels * 8]`.
fn copy_panels(
    kernels: &dyn Kernels,
    format: FloatFormat,
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
        let row_bytes = PANEL * format.weight_bytes();
        let panel = &panel[inputs.start * row_bytes..inputs.end * row_bytes];
        match format {
            FloatFormat::F16 => kernels.widen(panel, wide),
            FloatFormat::F32 => {
                for (wide, bytes) in wide.iter_mut().zip(panel.chunks_exact(4)) {
                    *wide = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
        }
        for (b, wide) in b.chunks_exact_mut(width).zip(wide.chunks_exact(PANEL)) {
            b[p * PANEL..][..PANEL].copy_from_slice(wide);
        }
    }
}
