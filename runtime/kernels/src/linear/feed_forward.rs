//! Two products with an activation between them.

use super::quantized::{
    Activations, FEW_TOKENS, Quantizer, TASK_PANELS, accumulate, multiply, quantize, shares,
    with_activations,
};
use super::{Epilogue, Output, cut, finish, linear, tokens};
use crate::activation::{Activation, gated};
use crate::cpu::{Kernels, TILE_TOKENS};
use crate::format::{BLOCK, GROUP, Matrix, PANEL};
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts, as_uninit};
use std::ops::Range;

// A task's outputs are whole groups of inputs of the product that follows.
const _: () = assert!(TASK_PANELS * PANEL == GROUP * BLOCK);

/// The feed-forward part of a transformer's layer: `down(a(up(x)))`, or gated, `down(a(gate(x)) * up(x))` (Shazeer 2020,
/// [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)), where the first matrix holds the rows of `gate`, then those of `up`.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// `[width, inputs]`; gated: `[2 * width, inputs]`.
    pub up: Matrix<'a>,
    /// One number per row of `up`.
    pub up_bias: Option<&'a [f32]>,
    /// Between the two products.
    pub activation: Activation,
    /// Whether the first half of `up` is a gate.
    pub gated: bool,
    /// `[outputs, width]`
    pub down: Matrix<'a>,
    /// One number per row of `down`.
    pub down_bias: Option<&'a [f32]>,
}

/// `out = feed_forward(x)`, or added to `out`.
///
/// The same numbers as [`linear`], [`gated`] and `linear` again give. With quantized weights, though, what lies between the
/// products is quantized where it is computed, a group of 128 at a time, and never held in floats.
///
/// # Shapes
/// `x`: `[tokens, inputs]`; `out`: `[tokens, outputs]`
///
/// # Panics
/// If the lengths do not fit each other.
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
    let Some(tokens) = tokens(x, outputs, out) else {
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
    let quantized = up.shape().format.is_quantized() && down.shape().format.is_quantized();
    // The rows of the gate and of `up` begin with a panel each, or else they cannot be taken side by side.
    if !quantized || layers.gated && !width.is_multiple_of(PANEL) {
        return one_by_one(pool, layers, x, tokens, &epilogue, out);
    }
    let out = Parts::new(as_uninit(out));
    let output = Output::new(pool, outputs, epilogue, &out);
    let kernels = pool.kernels();
    with_activations(
        kernels,
        up.shape(),
        tokens,
        |quantizer| quantize(pool, quantizer, x, up.shape().cols),
        |x| {
            with_activations(
                kernels,
                down.shape(),
                tokens,
                |quantizer| hidden(pool, layers, x, quantizer),
                |x| multiply(pool, down, x, &output),
            );
        },
    );
}

/// As three operations, whatever the formats.
fn one_by_one(
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

/// What lies between the products, quantized.
fn hidden(pool: &ThreadPool, layers: &FeedForward, x: &Activations, quantizer: &Quantizer) {
    let panels = layers.down.shape().cols.div_ceil(PANEL);
    let groups = panels.div_ceil(TASK_PANELS);
    if x.tokens <= FEW_TOKENS {
        let starts = shares(groups, 1, pool.threads());
        return pool.run(starts.len() - 1, |index| {
            let panels = starts[index] * TASK_PANELS..panels.min(starts[index + 1] * TASK_PANELS);
            task(pool.kernels(), layers, x, panels, 0, quantizer);
        });
    }
    pool.run(groups * x.tokens.div_ceil(TILE_TOKENS), |index| {
        let (tile, panels) = cut(index, groups, panels, TASK_PANELS);
        task(
            pool.kernels(),
            layers,
            x,
            panels,
            tile * TILE_TOKENS,
            quantizer,
        );
    });
}

/// Some groups of the hidden activations of the tile that begins with token `start`.
fn task(
    kernels: &dyn Kernels,
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
        accumulate(kernels, &layers.up, tile, panels.clone(), sums);
        if layers.gated {
            let ahead = width / PANEL;
            let panels = panels.start + ahead..panels.end + ahead;
            accumulate(kernels, &layers.up, tile, panels, ups);
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
