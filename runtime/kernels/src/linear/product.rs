//! A product with packed weights of any format.

use super::epilogue::{Epilogue, Output, token_count};
use super::{float, quantized};
use crate::activation::Activation;
use crate::format::{FormatKind, Matrix};
use crate::pool::ThreadPool;
use crate::scratch::{Parts, as_uninit, fresh};

/// Computes `out = epilogue(x w^T)` for one token or many.
///
/// With `q8` and `q4` weights the activations are quantized to 8 bits with a scale per token and 128 inputs.
/// An output is bitwise independent of the number of threads and of the other tokens.
///
/// # Shapes
/// `x`: `[tokens, w.cols]`; `out`: `[tokens, w.rows]`
///
/// # Panics
/// If the lengths do not match, or the bias does not have `w.rows` elements.
pub fn linear(pool: &ThreadPool, w: &Matrix, x: &[f32], epilogue: &Epilogue, out: &mut [f32]) {
    let rows = w.shape().rows;
    let Some(tokens) = token_count(x, rows, out) else {
        return;
    };
    let out = Parts::new(as_uninit(out));
    let output = Output::new(pool.kernels(), rows, *epilogue, &out);
    multiply(pool, w, x, tokens, &output);
}

/// Computes `activation(x w^T + bias)` into a new vector. The result is that of [`linear`], without the cost
/// of clearing the memory first.
///
/// # Shapes
/// `x`: `[tokens, w.cols]`; `bias`: `[w.rows]`; result: `[tokens, w.rows]`
///
/// # Panics
/// If the lengths do not match.
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
    // SAFETY: `multiply` stores all outputs of all tokens.
    #[allow(unsafe_code)]
    unsafe {
        fresh(tokens * rows, |out| {
            multiply(
                pool,
                w,
                x,
                tokens,
                &Output::new(pool.kernels(), rows, epilogue, out),
            );
        })
    }
}

/// Computes and stores all outputs of all tokens.
fn multiply(pool: &ThreadPool, w: &Matrix, x: &[f32], tokens: usize, output: &Output) {
    let cols = w.shape().cols;
    assert_eq!(
        x.len(),
        tokens * cols,
        "inputs of {tokens} tokens with {cols} each"
    );
    match w.shape().format.kind() {
        FormatKind::Float(format) => float::float(pool, format, w, x, tokens, output),
        FormatKind::Quant(format) => quantized::quantized(pool, format, w, x, tokens, output),
    }
}
