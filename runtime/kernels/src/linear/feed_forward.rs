//! Feed-forward networks: two products with an activation between them.

use super::activations::{Activations, Quantizer, quantize, with_activations};
use super::epilogue::{Epilogue, Output, finish, token_count};
use super::product::linear;
use super::quantized::{FEW_TOKENS, TASK_PANELS, accumulate, multiply};
use super::schedule::{grid_task, guided};
use crate::activation::Activation;
use crate::cpu::{Kernels, TILE_TOKENS};
use crate::elementwise::gated;
use crate::format::{BLOCK, FormatKind, GROUP, Matrix, PANEL, QuantFormat};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts, as_uninit};
use std::ops::Range;

// The outputs of a task are whole groups of inputs of the second product.
const _: () = assert!(TASK_PANELS * PANEL == GROUP * BLOCK);

/// The feed-forward network of a transformer layer: `down(a(up(x)))`, or, gated, `down(a(gate(x)) * up(x))`
/// (Shazeer 2020, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)), in which case `up` holds the rows of
/// `gate`, then those of `up`.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// `[width, inputs]`; gated: `[2 * width, inputs]`.
    pub up: Matrix<'a>,
    /// One element per row of `up`.
    pub up_bias: Option<&'a [f32]>,
    /// Activation function between the two products.
    pub activation: Activation,
    /// `true` if the first half of `up` is a gate.
    pub gated: bool,
    /// `[outputs, width]`
    pub down: Matrix<'a>,
    /// One element per row of `down`.
    pub down_bias: Option<&'a [f32]>,
}

/// Computes `out = feed_forward(x)`, or adds it to `out` if `accumulate`.
///
/// The result is that of [`linear`], [`gated`] and `linear`. With quantized weights, however, the hidden
/// activations are quantized as they are computed, in groups of 128, and never stored as floats.
///
/// # Shapes
/// `x`: `[tokens, inputs]`; `out`: `[tokens, outputs]`
///
/// # Panics
/// If the lengths do not match.
pub fn feed_forward(
    pool: &ThreadPool,
    layers: &FeedForward,
    x: &[f32],
    accumulate: bool,
    out: &mut [f32],
) {
    let FeedForward { up, down, .. } = layers;
    let (width, outputs) = (down.shape().cols, down.shape().rows);
    assert_eq!(
        up.shape().rows,
        if layers.gated { 2 * width } else { width },
        "rows before a product with {width} inputs, gated: {}",
        layers.gated
    );
    let Some(tokens) = token_count(x, outputs, out) else {
        return;
    };
    assert_eq!(
        x.len(),
        tokens * up.shape().cols,
        "inputs of {tokens} tokens with {} each",
        up.shape().cols
    );
    if let Some(bias) = layers.up_bias {
        assert_eq!(bias.len(), up.shape().rows, "bias of the first product");
    }
    let epilogue = Epilogue {
        bias: layers.down_bias,
        activation: Activation::None,
        accumulate,
    };
    let formats = [up.shape().format.kind(), down.shape().format.kind()];
    let [FormatKind::Quant(up_format), FormatKind::Quant(down_format)] = formats else {
        return unfused(pool, layers, x, tokens, &epilogue, out);
    };
    // The gate and `up` are computed in parallel only if the rows of both begin with a panel.
    if layers.gated && !width.is_multiple_of(PANEL) {
        return unfused(pool, layers, x, tokens, &epilogue, out);
    }
    let out = Parts::new(as_uninit(out));
    let output = Output::new(pool.kernels(), outputs, epilogue, &out);
    let kernels = pool.kernels();
    with_activations(
        kernels,
        up_format,
        up.shape().blocks(),
        tokens,
        |quantizer| quantize(pool, quantizer, x, up.shape().cols),
        |x| {
            with_activations(
                kernels,
                down_format,
                down.shape().blocks(),
                tokens,
                |quantizer| hidden(pool, up_format, layers, x, quantizer),
                |x| multiply(pool, down_format, down, x, &output),
            );
        },
    );
}

/// Computes the layers as separate operations, for any formats.
fn unfused(
    pool: &ThreadPool,
    layers: &FeedForward,
    x: &[f32],
    tokens: usize,
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    let (rows, width) = (layers.up.shape().rows, layers.down.shape().cols);
    let first = Epilogue {
        bias: layers.up_bias,
        activation: if layers.gated {
            Activation::None
        } else {
            layers.activation
        },
        accumulate: false,
    };
    scratch::with(tokens * rows, |hidden| {
        linear(pool, &layers.up, x, &first, hidden);
        if layers.gated {
            scratch::with(tokens * width, |product| {
                gated(pool, hidden, width, layers.activation, product);
                linear(pool, &layers.down, product, epilogue, out);
            });
        } else {
            linear(pool, &layers.down, hidden, epilogue, out);
        }
    });
}

/// Computes and quantizes the hidden activations. `format` is that of `up`.
fn hidden(
    pool: &ThreadPool,
    format: QuantFormat,
    layers: &FeedForward,
    x: &Activations,
    quantizer: &Quantizer,
) {
    let panels = layers.down.shape().cols.div_ceil(PANEL);
    let groups = panels.div_ceil(TASK_PANELS);
    if x.tokens <= FEW_TOKENS {
        let starts = guided(groups, 1, pool.threads());
        return pool.run(starts.len() - 1, |index| {
            let panels = starts[index] * TASK_PANELS..panels.min(starts[index + 1] * TASK_PANELS);
            task(pool.kernels(), format, layers, x, panels, 0, quantizer);
        });
    }
    pool.run(groups * x.tokens.div_ceil(TILE_TOKENS), |index| {
        let (tile, panels) = grid_task(index, groups, panels, TASK_PANELS);
        task(
            pool.kernels(),
            format,
            layers,
            x,
            panels,
            tile * TILE_TOKENS,
            quantizer,
        );
    });
}

/// Computes some groups of the hidden activations of the tile that begins with token `start`.
fn task(
    kernels: &dyn Kernels,
    format: QuantFormat,
    layers: &FeedForward,
    x: &Activations,
    panels: Range<usize>,
    start: usize,
    quantizer: &Quantizer,
) {
    let tile = x.tile(start);
    let width = layers.down.shape().cols;
    let stride = panels.len() * PANEL;
    let first = panels.start * PANEL;
    let count = stride.min(width - first);
    let groups = panels.start / TASK_PANELS..panels.end.div_ceil(TASK_PANELS);
    let epilogue = |activation| Epilogue {
        bias: layers.up_bias,
        activation,
        accumulate: false,
    };
    let size = tile.tokens * stride;
    scratch::with(if layers.gated { 2 * size } else { size }, |acc| {
        let (sums, ups) = acc.split_at_mut(size);
        accumulate(kernels, format, &layers.up, tile, panels.clone(), sums);
        if layers.gated {
            let ahead = width / PANEL;
            let panels = panels.start + ahead..panels.end + ahead;
            accumulate(kernels, format, &layers.up, tile, panels, ups);
        }
        for (token, sums) in sums.chunks_exact_mut(stride).enumerate() {
            let sums = &mut sums[..count];
            finish(kernels, &epilogue(layers.activation), first, sums);
            if layers.gated {
                let up = &mut ups[token * stride..][..count];
                finish(kernels, &epilogue(Activation::None), width + first, up);
                for (sum, up) in sums.iter_mut().zip(up) {
                    *sum *= *up;
                }
            }
        }
        let rows = sums.chunks_exact(stride).map(|row| &row[..count]);
        quantizer.put(start, groups, rows.enumerate());
    });
}
