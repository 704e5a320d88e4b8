//! The objective of calibrated quantization: the mean squared change of a layer's outputs.
//!
//! With the change `e` of a row of weights and the mean `H` of `x xᵀ` over the inputs `x`, the mean
//! squared change of the row's output is `e H eᵀ`.

use super::products::cholesky;

/// Share of the mean diagonal that is added to the diagonal.
const DAMPING: f32 = 0.01;

/// Inputs of a layer that have been seen: the damped mean of `x xᵀ`, and its factor.
pub(super) struct Hessian {
    /// Number of inputs.
    pub n: usize,
    /// `[n, n]`
    pub values: Vec<f32>,
    /// Inputs in the order in which GPTQ rounds them: by falling mean square.
    pub order: Vec<usize>,
    /// `Uᵀ` of the decomposition `U D Uᵀ` of the reordered matrix, with a unit upper triangular `U`:
    /// `[n, n]`, zero above the diagonal.
    pub feedback: Vec<f32>,
}

impl Hessian {
    /// Decomposes the mean of `x xᵀ`. A matrix that is too close to singular is damped more.
    pub fn new(mut values: Vec<f32>, n: usize) -> Self {
        let mean = (0..n).map(|i| f64::from(values[i * n + i])).sum::<f64>() / n.max(1) as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        let mut damping = DAMPING;
        for i in 0..n {
            values[i * n + i] += damping * mean;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| values[b * n + b].total_cmp(&values[a * n + a]));
        let feedback = loop {
            if let Some(feedback) = feedback(&values, n, &order) {
                break feedback;
            }
            for i in 0..n {
                values[i * n + i] += damping * mean;
            }
            damping *= 2.0;
        };
        Self {
            n,
            values,
            order,
            feedback,
        }
    }
}

/// Decomposes the reordered matrix. The Cholesky factor of the matrix in reverse order is the upper
/// factor of the matrix itself.
fn feedback(values: &[f32], n: usize, order: &[usize]) -> Option<Vec<f32>> {
    let mut reversed = vec![0.0; n * n];
    for (row, &from) in reversed.chunks_exact_mut(n.max(1)).zip(order.iter().rev()) {
        for (value, &column) in row.iter_mut().zip(order.iter().rev()) {
            *value = values[from * n + column];
        }
    }
    if !cholesky(&mut reversed, n) {
        return None;
    }
    let mut out = vec![0.0; n * n];
    for k in 0..n {
        let column = n - 1 - k;
        let pivot = reversed[column * n + column];
        for j in 0..=k {
            out[k * n + j] = reversed[(n - 1 - j) * n + column] / pivot;
        }
    }
    Some(out)
}
