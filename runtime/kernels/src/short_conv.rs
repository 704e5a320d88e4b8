//! Causal convolution over a few tokens, each channel on its own.

use crate::activation::Activation;
use crate::attention::Rows;
use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::{self, Parts};

/// Channels that a task computes for all tokens.
const BLOCK: usize = 256;

/// Computes `activation(sum of kernel[c, i] * x[t - taps + 1 + i, c])` for every token `t` and channel
/// `c`. `before` are the inputs of the `taps - 1` tokens before the first. Each output is a fixed sequence
/// of operations, however the tokens are divided into calls.
///
/// # Shapes
/// `x` and result: `[tokens, channels]`, `before`: `[taps - 1, channels]`, `kernel`: `[channels, taps]`
///
/// # Panics
/// If the lengths do not fit together.
pub fn short_conv(
    pool: &ThreadPool,
    x: Rows<'_>,
    tokens: usize,
    before: &[f32],
    kernel: &[f32],
    channels: usize,
    activation: Activation,
) -> Vec<f32> {
    let taps = kernel.len() / channels.max(1);
    assert!(
        taps > 0 && kernel.len() == taps * channels && before.len() == (taps - 1) * channels,
        "a kernel of {} and {} inputs before, for {channels} channels",
        kernel.len(),
        before.len()
    );
    let mut out = vec![0.0; tokens * channels];
    let parts = Parts::new(&mut out);
    let blocks = channels.div_ceil(BLOCK);
    let grain = GRAIN / (BLOCK * tokens.max(1));
    pool.run_ranges(blocks, grain, |range| {
        for block in range {
            let first = block * BLOCK;
            let len = BLOCK.min(channels - first);
            let row = |place: usize| match place.checked_sub(taps - 1) {
                Some(token) => &x.data[token * x.stride + first..][..len],
                None => &before[place * channels + first..][..len],
            };
            scratch::with(taps * len, |columns| {
                for (i, column) in columns.chunks_exact_mut(len).enumerate() {
                    let weights = kernel[first * taps..].chunks_exact(taps);
                    column.iter_mut().zip(weights).for_each(|(w, k)| *w = k[i]);
                }
                for token in 0..tokens {
                    let place = token * channels + first;
                    // SAFETY: each block has its own channels.
                    #[allow(unsafe_code)]
                    let out = unsafe { parts.part(place..place + len) };
                    for (i, column) in columns.chunks_exact(len).enumerate() {
                        pool.kernels().multiply_add(row(token + i), column, out);
                    }
                    pool.kernels().activate(activation, out);
                }
            });
        }
    });
    out
}
