//! Sums over heads and weighted sums of rows, for the merging of tokens.

use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::Parts;

/// Sums the heads of every row, from column `column` on.
///
/// # Shapes
/// `x`: `[rows, stride]`, `out`: `[rows, head_dim]`
///
/// # Panics
/// If the heads do not fit into a row, or the lengths do not fit together.
pub fn sum_heads(
    pool: &ThreadPool,
    x: &[f32],
    stride: usize,
    column: usize,
    heads: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    assert!(
        head_dim > 0 && column + heads * head_dim <= stride,
        "{heads} heads of {head_dim} from column {column} on exceed rows of {stride}"
    );
    let rows = out.len() / head_dim;
    assert_eq!(x.len(), rows * stride, "elements of {rows} rows");
    let parts = Parts::new(out);
    pool.run_ranges(rows, (GRAIN / head_dim).max(1), |range| {
        for row in range {
            // SAFETY: each row has its own part of the output.
            #[allow(unsafe_code)]
            let sum = unsafe { parts.part(row * head_dim..(row + 1) * head_dim) };
            sum.fill(0.0);
            let keys = &x[row * stride + column..][..heads * head_dim];
            for head in keys.chunks_exact(head_dim) {
                sum.iter_mut().zip(head).for_each(|(sum, x)| *sum += x);
            }
        }
    });
}

/// Weighted sums of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSums {
    /// First term of each sum, and the number of all terms.
    starts: Vec<usize>,
    sources: Vec<u32>,
    weights: Vec<f32>,
}

impl Default for RowSums {
    fn default() -> Self {
        Self {
            starts: vec![0],
            sources: Vec::new(),
            weights: Vec::new(),
        }
    }
}

impl RowSums {
    /// Appends the sum of the given terms: a row and its weight.
    pub fn push(&mut self, terms: impl IntoIterator<Item = (usize, f32)>) {
        for (source, weight) in terms {
            self.sources.push(u32::try_from(source).unwrap_or(u32::MAX));
            self.weights.push(weight);
        }
        self.starts.push(self.sources.len());
    }

    /// Returns the number of sums.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns `true` if there are no sums.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sum, the source and the weight of every term.
    pub fn terms(&self) -> impl Iterator<Item = (usize, u32, f32)> {
        (0..self.len()).flat_map(move |sum| {
            let terms = self.starts[sum]..self.starts[sum + 1];
            terms.map(move |term| (sum, self.sources[term], self.weights[term]))
        })
    }
}

/// Computes weighted sums of rows. A row whose weight is 1 is copied.
///
/// # Shapes
/// `x`: `[rows, width]`, `out`: `[sums.len(), width]`
///
/// # Panics
/// If a source is not a row, or the lengths do not fit together.
pub fn sum_rows(pool: &ThreadPool, x: &[f32], width: usize, sums: &RowSums, out: &mut [f32]) {
    assert_eq!(out.len(), sums.len() * width, "elements of the sums");
    let parts = Parts::new(out);
    pool.run_ranges(sums.len(), GRAIN.div_ceil(width.max(1)), |range| {
        for sum in range {
            // SAFETY: each sum has its own row of the output.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(sum * width..(sum + 1) * width) };
            let terms = sums.starts[sum]..sums.starts[sum + 1];
            out.fill(0.0);
            for term in terms.clone() {
                let row = &x[sums.sources[term] as usize * width..][..width];
                let weight = sums.weights[term];
                match term == terms.start && weight == 1.0 {
                    true => out.copy_from_slice(row),
                    false => out
                        .iter_mut()
                        .zip(row)
                        .for_each(|(out, x)| *out += weight * x),
                }
            }
        }
    });
}

/// Columns whose sums are computed side by side.
const COLUMNS: usize = 64;

/// Computes the sum of all rows of `x`, each multiplied by its weight, in double precision.
///
/// # Shapes
/// `weights`: `[rows]`, `x`: `[rows, width]`, `out`: `[width]`
///
/// # Panics
/// If the lengths do not fit together.
pub fn weighted_sum(pool: &ThreadPool, weights: &[f32], x: &[f32], out: &mut [f64]) {
    let width = out.len();
    assert_eq!(x.len(), weights.len() * width, "elements of the rows");
    let parts = Parts::new(out);
    let grain = GRAIN.div_ceil(weights.len().max(1)).max(COLUMNS);
    pool.run_ranges(width, grain, |range| {
        // SAFETY: the ranges do not overlap.
        #[allow(unsafe_code)]
        let out = unsafe { parts.part(range.clone()) };
        for (i, out) in out.chunks_mut(COLUMNS).enumerate() {
            let first = range.start + i * COLUMNS;
            let mut sums = [0.0f64; COLUMNS];
            for (row, &weight) in weights.iter().enumerate() {
                let columns = &x[row * width + first..][..out.len()];
                for (sum, &x) in sums.iter_mut().zip(columns) {
                    *sum += f64::from(weight) * f64::from(x);
                }
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn columns_are_summed_by_weight() {
        let (rows, width) = (5, 20_000);
        let x: Vec<f32> = (0..rows * width).map(|i| (i % 97) as f32).collect();
        let weights = [1.0, -2.0, 0.5, 0.0, 3.0];
        let expected = |column: usize| -> f64 {
            let of_row = |row: usize| f64::from(weights[row]) * f64::from(x[row * width + column]);
            (0..rows).map(of_row).sum()
        };
        for threads in [1, 3] {
            let mut out = vec![f64::NAN; width];
            weighted_sum(&pool(threads), &weights, &x, &mut out);
            assert!((0..width).all(|column| out[column] == expected(column)));
        }
        let mut none = [1.0];
        weighted_sum(&pool(1), &[], &[], &mut none);
        assert_eq!(none, [0.0]);
    }

    #[test]
    fn heads_are_summed_within_their_columns() {
        let x = [9.0, 1.0, 2.0, 3.0, 4.0, 9.0, 5.0, 6.0, 7.0, 8.0];
        let mut out = [f32::NAN; 4];
        sum_heads(&pool(2), &x, 5, 1, 2, 2, &mut out);
        assert_eq!(out, [4.0, 6.0, 12.0, 14.0]);
    }

    #[test]
    fn rows_are_copied_or_summed() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut sums = RowSums::default();
        sums.push([(2, 1.0)]);
        sums.push([(0, 0.5), (1, 0.25)]);
        sums.push([]);
        let mut out = [f32::NAN; 6];
        sum_rows(&pool(3), &x, 2, &sums, &mut out);
        assert_eq!(out, [5.0, 6.0, 1.25, 2.0, 0.0, 0.0]);
        assert_eq!(sums.terms().last(), Some((1, 1, 0.25)));
    }
}
