//! Activation functions over whole tensors.

use crate::activation::Activation;
use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::Parts;

/// Applies `activation` to every element of `x`.
pub fn activate(pool: &ThreadPool, x: &mut [f32], activation: Activation) {
    if activation == Activation::None {
        return;
    }
    let len = x.len();
    let parts = Parts::new(x);
    pool.run_ranges(len, GRAIN, |range| {
        // SAFETY: the ranges of the tasks do not overlap.
        #[allow(unsafe_code)]
        let x = unsafe { parts.part(range) };
        pool.kernels().activate(activation, x);
    });
}

/// The gate of a feed-forward network: `out = activation(gate) * up`.
///
/// # Shapes
/// `gate_up`: `[tokens, 2 * width]`, the gate first; `out`: `[tokens, width]`
///
/// # Panics
/// If the length of `out` is not a multiple of `width`, or `gate_up` is not twice as long as `out`.
pub fn gated(
    pool: &ThreadPool,
    gate_up: &[f32],
    width: usize,
    activation: Activation,
    out: &mut [f32],
) {
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
    // A single token can be wide enough for several threads, so the tasks are pieces of rows.
    let pieces = width.div_ceil(GRAIN);
    let piece = width.div_ceil(pieces);
    pool.run_ranges(tokens * pieces, (GRAIN / piece).max(1), |range| {
        for index in range {
            let (token, from) = (index / pieces, (index % pieces * piece).min(width));
            let to = (from + piece).min(width);
            let row = &gate_up[token * 2 * width..][..2 * width];
            // SAFETY: each index has its own piece of a row.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(token * width + from..token * width + to) };
            let (gate, up) = (&row[from..to], &row[width + from..width + to]);
            pool.kernels().gated(activation, gate, up, out);
        }
    });
}
