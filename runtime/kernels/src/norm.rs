//! Normalisation of rows.

use crate::pool::ThreadPool;
use crate::scratch::Parts;

/// Elements that make a task worth handing to another thread.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Root-mean-square normalisation of each row: `x / sqrt(mean(x^2) + eps) * gamma`
/// (Zhang & Sennrich 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)).
///
/// # Shapes
/// `x` and `out`: `[tokens, gamma.len()]`
///
/// # Panics
/// If the lengths of `x` and `out` differ or are not whole rows.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
    rows(pool, x, gamma.len(), out, |x, out| {
        pool.kernels().rms_norm(x, gamma, eps, out)
    });
}

/// Layer normalisation of each row: `(x - mean) / sqrt(variance + eps) * gamma + beta`, with the variance over the
/// whole row (Ba et al. 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)).
///
/// # Shapes
/// `x` and `out`: `[tokens, gamma.len()]`; `beta`: `[gamma.len()]`
///
/// # Panics
/// If the lengths of `x` and `out` differ or are not whole rows, or `gamma` and `beta` differ in length.
pub fn layer_norm(
    pool: &ThreadPool,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(gamma.len(), beta.len(), "gamma and beta");
    rows(pool, x, gamma.len(), out, |x, out| {
        pool.kernels().layer_norm(x, gamma, beta, eps, out)
    });
}

/// Calls `f` with each row of `x` and `out`.
fn rows(
    pool: &ThreadPool,
    x: &[f32],
    width: usize,
    out: &mut [f32],
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    assert_eq!(x.len(), out.len(), "input and output");
    if x.is_empty() {
        return;
    }
    assert!(
        width > 0 && x.len().is_multiple_of(width),
        "{} elements are not rows of {width}",
        x.len()
    );
    let out = Parts::new(out);
    pool.run_ranges(x.len() / width, GRAIN.div_ceil(width), |range| {
        let range = range.start * width..range.end * width;
        // SAFETY: the ranges of the tasks do not overlap.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(range.clone()) };
        for (x, out) in x[range]
            .chunks_exact(width)
            .zip(out.chunks_exact_mut(width))
        {
            f(x, out);
        }
    });
}
