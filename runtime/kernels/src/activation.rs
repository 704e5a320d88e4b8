//! Activation functions.

use crate::norm::GRAIN;
use crate::pool::ThreadPool;
use crate::scratch::Parts;

/// A function applied to each element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `max(x, 0)`
    Relu,
    /// `x * Phi(x)` with the exact normal distribution (`erf`), to an absolute error of `2e-7 * |x|`
    /// (Hendrycks & Gimpel 2016, [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, PyTorch's `approximate="tanh"`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, as in CLIP.
    QuickGelu,
    /// `x * sigmoid(x)`
    Silu,
}

/// Applies `a` to every element of `x`.
pub fn activate(pool: &ThreadPool, x: &mut [f32], a: Activation) {
    if a == Activation::None {
        return;
    }
    let len = x.len();
    let parts = Parts::new(x);
    pool.run_ranges(len, GRAIN, |range| {
        // SAFETY: the ranges of the tasks do not overlap.
        #[allow(unsafe_code)]
        let x = unsafe { parts.part(range) };
        pool.kernels().activate(a, x);
    });
}

/// The gated feed-forward's middle: `out = a(gate) * up`.
///
/// # Shapes
/// `gate_up`: `[tokens, 2 * width]`, the gate first; `out`: `[tokens, width]`
///
/// # Panics
/// If `out` is not whole rows of `width` or `gate_up` is not twice as long.
pub fn gated(pool: &ThreadPool, gate_up: &[f32], width: usize, a: Activation, out: &mut [f32]) {
    assert_eq!(
        gate_up.len(),
        2 * out.len(),
        "gate_up is twice as wide as the output"
    );
    if out.is_empty() {
        return;
    }
    assert!(
        width > 0 && out.len().is_multiple_of(width),
        "{} elements are not rows of {width}",
        out.len()
    );
    let tokens = out.len() / width;
    let parts = Parts::new(out);
    // One token is wide enough to share, so the tasks are pieces of rows.
    let pieces = width.div_ceil(GRAIN);
    let piece = width.div_ceil(pieces);
    pool.run_ranges(tokens * pieces, (GRAIN / piece).max(1), |range| {
        for index in range {
            let (token, from) = (index / pieces, (index % pieces * piece).min(width));
            let to = (from + piece).min(width);
            let row = &gate_up[token * 2 * width..][..2 * width];
            // SAFETY: every index has its own piece of a row.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(token * width + from..token * width + to) };
            pool.kernels()
                .gated(a, &row[from..to], &row[width + from..width + to], out);
        }
    });
}
