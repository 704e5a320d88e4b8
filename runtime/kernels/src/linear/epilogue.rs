//! Destination of a product and the operations fused into it.

use crate::activation::Activation;
use crate::cpu::Kernels;
use crate::scratch::Parts;
use std::mem::MaybeUninit;

/// Operations fused into a product: `out = activation(product + bias)`, optionally added to `out`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the outputs of each token; `rows` elements.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `true` to add the result to `out`, as to a residual, instead of replacing it.
    pub accumulate: bool,
}

/// Destination of a product.
pub(super) struct Output<'a> {
    epilogue: Epilogue<'a>,
    rows: usize,
    out: &'a Parts<'a, MaybeUninit<f32>>,
    pub(super) kernels: &'static dyn Kernels,
}

impl<'a> Output<'a> {
    /// `out` is `[tokens, rows]`, and initialized if the epilogue accumulates.
    pub(super) fn new(
        kernels: &'static dyn Kernels,
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
            kernels,
        }
    }

    /// Applies the epilogue to consecutive outputs of one token, starting with row `first`, and stores them.
    /// Outputs of padding rows are dropped. No two tasks may store the same output.
    pub(super) fn store(&self, token: usize, first: usize, acc: &mut [f32]) {
        let count = acc.len().min(self.rows - first);
        let acc = &mut acc[..count];
        finish(self.kernels, &self.epilogue, first, acc);
        let at = token * self.rows + first;
        // SAFETY: each output belongs to one task, which holds no other part at this time.
        #[allow(unsafe_code)]
        let out = unsafe { self.out.part(at..at + count) };
        if self.epilogue.accumulate {
            for (out, acc) in out.iter_mut().zip(acc) {
                // SAFETY: `new` requires initialized elements for accumulation.
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

/// Adds the bias, starting with that of row `first`, and applies the activation.
pub(super) fn finish(kernels: &dyn Kernels, epilogue: &Epilogue, first: usize, acc: &mut [f32]) {
    if let Some(bias) = epilogue.bias {
        for (acc, bias) in acc.iter_mut().zip(&bias[first..]) {
            *acc += bias;
        }
    }
    if epilogue.activation != Activation::None {
        kernels.activate(epilogue.activation, acc);
    }
}

/// Number of tokens in `out`, whose rows have `rows` elements, or `None` if there is nothing to compute.
pub(super) fn token_count(x: &[f32], rows: usize, out: &[f32]) -> Option<usize> {
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
