//! Greedy choice of rows by a determinantal point process (DPP): the maximum a posteriori inference
//! of Chen et al. 2018 ([arXiv:1709.05135](https://arxiv.org/abs/1709.05135), algorithm 1).
//!
//! The kernel is `weight(i) * cos(i, j) * weight(j)`. A set is likely if its rows have large weights
//! and point in different directions. Every step takes the row that multiplies the determinant of
//! the chosen ones by most: its residual is its weight squared, less the part that lies in the span
//! of the rows chosen before.

use edge_lmm_ops::{pool, weighted_sum};

use super::rows::{Directions, cosine};
use super::sampling::largest;
use crate::error::ModelError;
use crate::monitor::Monitor;

/// A residual of less than this share of the weight squared is rounding: the row lies in the span of
/// the chosen ones.
const ROUNDING: f64 = 1e-6;

/// Residual of a row that is chosen already.
const TAKEN: f64 = f64::NEG_INFINITY;

/// Returns `count` rows, sorted: those of `first`, of which there are at most `count`, and others by
/// the greedy choice. Of equal rows, the first is taken. When all rows lie in the span of the chosen
/// ones, those of the largest weights follow. Weights are not negative; others count as 0, and so do
/// directions that are not numbers.
///
/// # Errors
/// If `monitor` cancels.
pub(crate) fn most_likely(
    rows: &Directions,
    weights: &[f32],
    count: usize,
    first: &[usize],
    monitor: &mut Monitor<'_>,
) -> Result<Vec<usize>, ModelError> {
    let tokens = rows.len();
    let count = count.min(tokens);
    if count == tokens {
        return Ok((0..tokens).collect());
    }
    let valid = |&weight: &f32| match weight.is_finite() {
        true => weight.max(0.0),
        false => 0.0,
    };
    let weights: Vec<f32> = weights.iter().map(valid).collect();
    let mut choice = Choice {
        rows,
        residuals: weights.iter().map(|&w| f64::from(w).powi(2)).collect(),
        weights,
        factors: Vec::new(),
        chosen: Vec::with_capacity(count),
    };
    while choice.chosen.len() < count {
        monitor.report(choice.chosen.len(), count)?;
        let next = first.get(choice.chosen.len()).copied();
        match next.or_else(|| choice.best()) {
            Some(next) => choice.take(next),
            None => choice.fill(count),
        }
    }
    choice.chosen.sort_unstable();
    Ok(choice.chosen)
}

/// State of the greedy choice.
struct Choice<'a> {
    rows: &'a Directions,
    weights: Vec<f32>,
    /// Square of the pivot that each row would have in the Cholesky decomposition of the kernel.
    residuals: Vec<f64>,
    /// Rows of the transposed Cholesky factor: `[chosen that are not in the span of others, tokens]`.
    factors: Vec<f32>,
    chosen: Vec<usize>,
}

impl Choice<'_> {
    /// Returns the row of the largest residual, if one is above 0.
    fn best(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (row, &residual) in self.residuals.iter().enumerate() {
            if residual > best.map_or(0.0, |best| self.residuals[best]) {
                best = Some(row);
            }
        }
        best
    }

    /// Chooses a row and takes its direction out of the residuals of the others.
    fn take(&mut self, row: usize) {
        let pivot = self.residuals[row];
        self.residuals[row] = TAKEN;
        self.chosen.push(row);
        if pivot <= 0.0 {
            return;
        }
        let tokens = self.weights.len();
        let column = |factor: &[f32]| factor[row];
        let own: Vec<f32> = self.factors.chunks_exact(tokens).map(column).collect();
        let mut explained = vec![0.0; tokens];
        weighted_sum(&pool::global(), &own, &self.factors, &mut explained);
        let distances = self.rows.distances(row..row + 1);
        let (weight, root) = (f64::from(self.weights[row]), pivot.sqrt());
        for (other, residual) in self.residuals.iter_mut().enumerate() {
            let squared = f64::from(self.weights[other]).powi(2);
            let kernel =
                weight * f64::from(cosine(distances[other])) * f64::from(self.weights[other]);
            let factor = (kernel - explained[other]) / root;
            self.factors.push(factor as f32);
            if *residual != TAKEN {
                *residual -= factor * factor;
                if *residual < ROUNDING * squared {
                    *residual = 0.0;
                }
            }
        }
    }

    /// Chooses the remaining rows of the largest weights.
    fn fill(&mut self, count: usize) {
        let weight = |(weight, residual): (&f32, &f64)| match *residual == TAKEN {
            true => f32::NEG_INFINITY,
            false => *weight,
        };
        let weights: Vec<f32> = self
            .weights
            .iter()
            .zip(&self.residuals)
            .map(weight)
            .collect();
        self.chosen
            .extend(largest(&weights, count - self.chosen.len()));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use burn::tensor::{Tensor, TensorData};

    use super::*;

    type Cpu = burn_ndarray::NdArray<f32, i64, i8>;

    fn choose<const N: usize>(
        rows: &[[f32; N]],
        weights: &[f32],
        count: usize,
        first: &[usize],
    ) -> Vec<usize> {
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        let data = TensorData::new(values, [rows.len(), N]);
        let rows = Directions::of(Tensor::<Cpu, 2>::from_data(data, &Default::default())).unwrap();
        let mut report = |_| ControlFlow::Continue(());
        most_likely(&rows, weights, count, first, &mut Monitor::new(&mut report)).unwrap()
    }

    /// Worked by hand: directions at 0, 60 and 90 degrees with weights 1, 0.9 and 0.8. The residuals
    /// after row 0 are 0.81 * 0.75 = 0.6075 and 0.64, so that row 2 follows.
    #[test]
    fn weight_and_direction_decide() {
        let rows = [[1.0, 0.0], [0.5, 0.75f32.sqrt()], [0.0, 1.0]];
        assert_eq!(choose(&rows, &[1.0, 0.9, 0.8], 1, &[]), [0]);
        assert_eq!(choose(&rows, &[1.0, 0.9, 0.8], 2, &[]), [0, 2]);
        // With weight 0.95, row 1 keeps 0.6769.
        assert_eq!(choose(&rows, &[1.0, 0.95, 0.8], 2, &[]), [0, 1]);
        // After row 2, row 0 keeps its whole weight.
        assert_eq!(choose(&rows, &[0.5, 0.9, 0.1], 2, &[2]), [0, 2]);
        assert_eq!(choose(&rows, &[0.0; 3], 3, &[]), [0, 1, 2]);
    }

    #[test]
    fn rows_in_the_span_of_others_follow_by_weight() {
        let rows = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 1.0]];
        let weights = [0.9, 1.0, 1.0, 0.2, 0.3];
        assert_eq!(choose(&rows, &weights, 2, &[]), [1, 2]);
        assert_eq!(choose(&rows, &weights, 3, &[]), [0, 1, 2]);
        assert_eq!(choose(&rows, &weights, 4, &[]), [0, 1, 2, 4]);
        // A row that is given first may be in the span.
        assert_eq!(choose(&rows, &weights, 4, &[1, 0, 2]), [0, 1, 2, 4]);
    }

    #[test]
    fn broken_rows_are_distinct_tokens() {
        assert_eq!(
            choose(&[[f32::NAN, 1.0]; 4], &[f32::NAN; 4], 3, &[]),
            [0, 1, 2]
        );
        assert_eq!(choose(&[[0.0, 0.0]; 3], &[1.0; 3], 2, &[]), [0, 1]);
        let rows = [[f32::NAN, 0.0], [1.0, 0.0], [0.0, 1.0]];
        assert_eq!(choose(&rows, &[f32::NAN, 1.0, 0.5], 2, &[]), [1, 2]);
    }
}
