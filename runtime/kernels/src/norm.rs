//! Normalization of rows.

use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::{fresh, zeroed};

/// Root mean square normalization of each row: `x / sqrt(mean(x^2) + eps) * gamma`
/// (Zhang & Sennrich 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)).
///
/// # Shapes
/// `x` and result: `[tokens, gamma.len()]`
///
/// # Panics
/// If the length of `x` is not a multiple of that of `gamma`.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], gamma: &[f32], eps: f32) -> Vec<f32> {
    rows(pool, x, gamma.len(), |x, out| {
        pool.kernels().rms_norm(x, gamma, eps, out)
    })
}

/// Layer normalization of each row: `(x - mean) / sqrt(variance + eps) * gamma + beta`, with the variance of the
/// whole row (Ba et al. 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)).
///
/// # Shapes
/// `x` and result: `[tokens, gamma.len()]`; `beta`: `[gamma.len()]`
///
/// # Panics
/// If the length of `x` is not a multiple of that of `gamma`, or `gamma` and `beta` differ in length.
pub fn layer_norm(pool: &ThreadPool, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    assert_eq!(gamma.len(), beta.len(), "gamma and beta");
    rows(pool, x, gamma.len(), |x, out| {
        pool.kernels().layer_norm(x, gamma, beta, eps, out)
    })
}

/// Applies `f(row, out)` to each row of `x`.
fn rows(
    pool: &ThreadPool,
    x: &[f32],
    width: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    if x.is_empty() {
        return Vec::new();
    }
    assert!(
        width > 0 && x.len().is_multiple_of(width),
        "{} elements are not rows of {width}",
        x.len()
    );
    // SAFETY: the ranges of the tasks are disjoint and cover all rows, each of which is written below.
    #[allow(unsafe_code)]
    unsafe {
        fresh(x.len(), |out| {
            pool.run_ranges(x.len() / width, GRAIN.div_ceil(width), |range| {
                for row in range {
                    let at = row * width..(row + 1) * width;
                    f(&x[at.clone()], zeroed(out.part(at)));
                }
            });
        })
    }
}
