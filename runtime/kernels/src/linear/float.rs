//! Products with f16 and f32 weights.

use super::{Output, cut};
use crate::cpu::{Kernels, Strided};
use crate::format::{Format, Matrix, MatrixShape, PANEL};
use crate::pool::ThreadPool;
use crate::scratch;
use std::ops::Range;

/// Tokens below which float weights are used straight from their panels.
const FLOAT_GEMV_TOKENS: usize = 4;
/// Tokens that a task works on.
const TASK_TOKENS: usize = 256;
/// Bytes of weights per task when there are few tokens.
const GEMV_BYTES: usize = 256 * 1024;
/// Panels that are brought into one matrix for many tokens.
const WIDE: usize = 4;
/// Inputs after which that matrix is done.
const CHUNK_INPUTS: usize = 256;

/// The product of all panels with all tokens.
pub(super) fn float(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
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
