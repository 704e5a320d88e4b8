//! Products with packed weights.

mod feed_forward;
mod float;
mod quantized;

pub use feed_forward::{FeedForward, feed_forward};

use crate::activation::Activation;
use crate::cpu::Kernels;
use crate::format::Matrix;
use crate::pool::ThreadPool;
use crate::scratch::{Parts, as_uninit, fresh};
use std::mem::MaybeUninit;
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
    let rows = w.shape().rows;
    let Some(tokens) = tokens(x, rows, out) else {
        return;
    };
    let out = Parts::new(as_uninit(out));
    let output = Output::new(pool, rows, *epilogue, &out);
    multiply(pool, w, x, tokens, &output);
}

/// `activation(x w^T + bias)` as a new vector. The same numbers as [`linear`] gives, but its memory need not be
/// cleared before.
///
/// # Shapes
/// `x`: `[tokens, w.cols]`; `bias`: `[w.rows]`; result: `[tokens, w.rows]`
///
/// # Panics
/// If the lengths do not fit each other.
pub fn product(
    pool: &ThreadPool,
    w: &Matrix,
    x: &[f32],
    tokens: usize,
    bias: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    let rows = w.shape().rows;
    let epilogue = Epilogue {
        bias,
        activation,
        accumulate: false,
    };
    // SAFETY: `multiply` stores every output of every token.
    #[allow(unsafe_code)]
    unsafe {
        fresh(tokens * rows, |out| {
            multiply(pool, w, x, tokens, &Output::new(pool, rows, epilogue, out));
        })
    }
}

/// How many tokens `out` has, rows of `rows`; `None` if there is nothing to compute.
fn tokens(x: &[f32], rows: usize, out: &[f32]) -> Option<usize> {
    if out.is_empty() && (x.is_empty() || rows == 0) {
        return None;
    }
    assert!(
        rows > 0 && out.len().is_multiple_of(rows),
        "{} outputs are not rows of {rows}",
        out.len()
    );
    Some(out.len() / rows)
}

/// Stores all outputs of all tokens.
fn multiply(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
    let cols = w.shape().cols;
    assert_eq!(
        x.len(),
        tokens * cols,
        "inputs of {tokens} tokens with {cols} each"
    );
    if w.shape().format.is_quantized() {
        quantized::quantized(pool, w, x, tokens, output);
    } else {
        float::float(pool, w, x, tokens, output);
    }
}

/// Where results go.
struct Output<'a> {
    epilogue: Epilogue<'a>,
    rows: usize,
    out: &'a Parts<'a, MaybeUninit<f32>>,
    kernels: &'static dyn Kernels,
}

impl<'a> Output<'a> {
    /// `out`: `[tokens, rows]`, initialized if the epilogue accumulates.
    fn new(
        pool: &ThreadPool,
        rows: usize,
        epilogue: Epilogue<'a>,
        out: &'a Parts<'a, MaybeUninit<f32>>,
    ) -> Self {
        if let Some(bias) = epilogue.bias {
            assert_eq!(bias.len(), rows, "bias of a matrix with {rows} rows");
        }
        Self {
            epilogue,
            rows,
            out,
            kernels: pool.kernels(),
        }
    }

    /// Stores consecutive outputs of one token, from row `first` on; those beyond the last row are dropped.
    /// No two tasks may store the same output.
    fn store(&self, token: usize, first: usize, acc: &mut [f32]) {
        let count = acc.len().min(self.rows - first);
        let acc = &mut acc[..count];
        finish(self.kernels, &self.epilogue, first, acc);
        let at = token * self.rows + first;
        // SAFETY: every output belongs to one task, which holds no other part at this time.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.part(at..at + count) };
        if self.epilogue.accumulate {
            for (out, acc) in out.iter_mut().zip(acc) {
                // SAFETY: what is accumulated is initialized, as `new` demands.
                #[allow(unsafe_code)]
                unsafe {
                    *out.assume_init_mut() += *acc;
                }
            }
        } else {
            out.write_copy_of_slice(acc);
        }
    }
}

/// Adds the bias from row `first` on, then applies the activation.
fn finish(kernels: &dyn Kernels, epilogue: &Epilogue, first: usize, acc: &mut [f32]) {
    if let Some(bias) = epilogue.bias {
        for (acc, bias) in acc.iter_mut().zip(&bias[first..]) {
            *acc += bias;
        }
    }
    if epilogue.activation != Activation::None {
        kernels.activate(epilogue.activation, acc);
    }
}

/// The parts of a task: how many rows of tasks, and the ranges of one.
fn cut(index: usize, pieces: usize, len: usize, size: usize) -> (usize, Range<usize>) {
    let start = index % pieces * size;
    (index / pieces, start..(start + size).min(len))
}
