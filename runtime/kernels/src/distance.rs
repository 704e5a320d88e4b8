//! Squared distances of rows.

use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::Parts;

/// Sums of a distance that are computed side by side.
const LANES: usize = 16;

/// Computes the squared Euclidean distances of all rows of `a` to all rows of `b`.
///
/// Differences of nearly equal rows are exact, where a product of normalized rows would lose them.
/// Every instruction set gives the same bits.
///
/// # Shapes
/// `a`: `[from, width]`, `b`: `[to, width]`, `out`: `[from, to]`
///
/// # Panics
/// If the lengths do not fit together.
pub fn squared_distances(pool: &ThreadPool, a: &[f32], b: &[f32], width: usize, out: &mut [f32]) {
    for x in [a, b] {
        assert!(
            width > 0 && x.len().is_multiple_of(width),
            "{} elements are not rows of {width}",
            x.len()
        );
    }
    let (from, to) = (a.len() / width, b.len() / width);
    assert_eq!(out.len(), from * to, "distances of {from} rows to {to}");
    let parts = Parts::new(out);
    pool.run_ranges(from, (GRAIN / b.len().max(1)).max(1), |range| {
        for row in range {
            // SAFETY: each row has its own part of the output.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(row * to..(row + 1) * to) };
            let from = &a[row * width..][..width];
            for (out, to) in out.iter_mut().zip(b.chunks_exact(width)) {
                *out = squared_distance(from, to);
            }
        }
    });
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            let difference = a[lane] - b[lane];
            sums[lane] += difference * difference;
        }
    }
    let whole: f32 = sums.iter().sum();
    whole + rest.map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn distances_equal_those_in_double_precision() {
        let (count, width) = (7, 37);
        let x: Vec<f32> = (0..count * width).map(|i| (i as f32).sin()).collect();
        let expected = |a: usize, b: usize| -> f64 {
            let row = |i: usize| x[i * width..][..width].iter().map(|&v| f64::from(v));
            row(a).zip(row(b)).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let mut results = Vec::new();
        for threads in [1, 3] {
            let pool = ThreadPool::new(NonZeroUsize::new(threads).unwrap());
            let mut out = vec![f32::NAN; 3 * count];
            squared_distances(&pool, &x[2 * width..5 * width], &x, width, &mut out);
            for (i, &distance) in out.iter().enumerate() {
                let exact = expected(2 + i / count, i % count);
                // One rounding for each of at most 37 additions.
                assert!((f64::from(distance) - exact).abs() <= exact * 38.0 * 6e-8);
            }
            results.push(out);
        }
        assert_eq!(results[0], results[1]);
    }
}
