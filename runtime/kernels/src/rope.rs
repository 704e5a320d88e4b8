//! Rotary position embedding.

use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::Parts;

/// Rotates the first `rotary_dim` elements of every head in place. Element `i` is paired with element
/// `i + rotary_dim / 2` ("rotate half", the order of GPT-NeoX and Llama): with `x1` and `x2` the two
/// halves, `x1, x2 = x1 cos - x2 sin, x2 cos + x1 sin`
/// (Su et al. 2021, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)).
///
/// # Shapes
/// `x` begins at the first head of token 0; token `t` begins at element `t * row_stride` and holds `heads`
/// consecutive heads of `head_dim`. `cos`, `sin`: `[tokens, rotary_dim / 2]`
///
/// # Panics
/// If `rotary_dim` is odd or exceeds `head_dim`, a token is longer than `row_stride`, `cos` and `sin`
/// differ in length or are not a multiple of `rotary_dim / 2` long, or `x` is too short.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    pool: &ThreadPool,
    x: &mut [f32],
    row_stride: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    cos: &[f32],
    sin: &[f32],
) {
    assert!(
        rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
        "rotary_dim {rotary_dim} of {head_dim}"
    );
    assert_eq!(cos.len(), sin.len(), "cos and sin");
    let half = rotary_dim / 2;
    if cos.is_empty() || heads == 0 {
        return;
    }
    assert!(
        half > 0 && cos.len().is_multiple_of(half),
        "{} angles are not rows of {half}",
        cos.len()
    );
    let tokens = cos.len() / half;
    let width = heads * head_dim;
    assert!(
        width <= row_stride || tokens == 1,
        "a row of {width} in a stride of {row_stride}"
    );
    assert!(
        (tokens - 1) * row_stride + width <= x.len(),
        "{tokens} rows do not fit {} elements",
        x.len()
    );
    let parts = Parts::new(x);
    pool.run_ranges(tokens, GRAIN.div_ceil(width), |range| {
        for token in range {
            // SAFETY: rows do not overlap, and each token belongs to one task.
            #[allow(unsafe_code)]
            let row = unsafe { parts.part(token * row_stride..token * row_stride + width) };
            let angles = token * half..(token + 1) * half;
            for head in row.chunks_exact_mut(head_dim) {
                let (low, high) = head[..rotary_dim].split_at_mut(half);
                pool.kernels()
                    .rotate(low, high, &cos[angles.clone()], &sin[angles.clone()]);
            }
        }
    });
}
