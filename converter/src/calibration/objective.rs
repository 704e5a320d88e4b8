//! The objective of rounding for a range of a weight's columns.
//!
//! The sums of products of a weight take memory by the square of its width. Those of a wide weight are
//! collected for ranges of columns, and each range is rounded as a weight of its own: the errors of one
//! range do not make up for those of another.

use std::ops::Range;

use edge_lmm_kernels::format::BLOCK;
use edge_lmm_kernels::pack::Quantized;
use edge_lmm_ops::MatrixShape;

use super::hessian::Hessian;
use super::products::{columns, product_transposed, transposed};
use super::rounding::WIDTH;
use super::statistics::Products;

/// Single-precision values for each product of a range: the products and the drift, a factor, and two
/// copies while it is computed.
const VALUES: usize = 5;

/// The objective of a range of columns: rounding shall change its share of the outputs little.
pub(super) struct Objective {
    /// The range.
    pub columns: Range<usize>,
    /// The products of its inputs.
    pub hessian: Hessian,
    /// The range of columns in the float model.
    float_columns: Range<usize>,
    /// Mean of `(y - x) xᵀ`, where `y` is the input in the float model, times a factor for its
    /// uncertainty.
    drift: Option<Vec<f32>>,
}

impl Objective {
    /// Creates the objective from the mean products of `tokens` inputs.
    pub fn new(products: Products, tokens: usize, damping: f32) -> Self {
        let Products {
            columns,
            float_columns,
            own,
            mut drift,
        } = products;
        let width = columns.len();
        // A regression with `width` unknowns explains that share of pure noise.
        let certain = (1.0 - width as f32 / tokens as f32).max(0.0);
        let drifts = drift.iter_mut().flatten();
        drifts.for_each(|x| *x *= certain);
        Self {
            columns,
            hessian: Hessian::new(own, width, damping),
            float_columns,
            drift,
        }
    }

    /// Adds to the columns what makes their outputs on the quantized model's inputs nearest to those of
    /// `float` on the float model's inputs.
    ///
    /// # Shapes
    /// - weights: `[rows, width]`
    /// - float: `[rows, float_width]`
    pub fn move_to(&self, float: &[f32], float_width: usize, weights: &mut [f32], width: usize) {
        let Some(drift) = &self.drift else {
            return;
        };
        let by_column = transposed(drift, self.hessian.n);
        let float = columns(float, float_width, self.float_columns.clone());
        let outputs = product_transposed(&float, &by_column, self.float_columns.len());
        let moves = self.hessian.divide(&outputs);
        let moves = moves.chunks_exact(self.hessian.n);
        for (row, moves) in weights.chunks_exact_mut(width).zip(moves) {
            let own = row[self.columns.clone()].iter_mut();
            own.zip(moves)
                .for_each(|(weight, change)| *weight += change);
        }
    }

    /// Calls `round` with the columns of the weights and of their quantized values.
    pub fn round(
        &self,
        shape: MatrixShape,
        weights: &[f32],
        quantized: &mut Quantized,
        round: impl FnOnce(&[f32], &mut Quantized),
    ) {
        if self.columns == (0..shape.cols) {
            return round(weights, quantized);
        }
        let Range { start, end } = self.columns;
        let blocks = start / BLOCK..end.div_ceil(BLOCK);
        let groups = start / WIDTH..end.div_ceil(WIDTH);
        let mut own = Quantized {
            quants: columns(&quantized.quants, shape.cols, start..end),
            sub_scales: columns(&quantized.sub_scales, shape.blocks(), blocks.clone()),
            scales: columns(&quantized.scales, shape.groups(), groups.clone()),
        };
        round(&columns(weights, shape.cols, start..end), &mut own);
        replace(&mut quantized.quants, shape.cols, start..end, &own.quants);
        replace(
            &mut quantized.sub_scales,
            shape.blocks(),
            blocks,
            &own.sub_scales,
        );
        replace(&mut quantized.scales, shape.groups(), groups, &own.scales);
    }
}

/// Replaces columns of a matrix with `n` columns.
fn replace<T: Copy>(a: &mut [T], n: usize, range: Range<usize>, by: &[T]) {
    for (row, own) in a.chunks_exact_mut(n).zip(by.chunks_exact(range.len())) {
        row[range.clone()].copy_from_slice(own);
    }
}

/// Returns the ranges of columns whose sums fit into half of `memory` bytes, about equally wide; at
/// least one group of columns is in a range.
pub(super) fn ranges(width: usize, memory: usize) -> impl Iterator<Item = Range<usize>> {
    let groups = width.div_ceil(WIDTH);
    let most = memory / 2 / (VALUES * size_of::<f32>() * width.max(1)) / WIDTH;
    let count = groups.div_ceil(most.max(1));
    let end = move |range: usize| (range * groups / count * WIDTH).min(width);
    (0..count).map(move |range| end(range)..end(range + 1))
}

/// Returns the bytes of the sums of a weight.
pub(super) fn memory_of_sums(width: usize, memory: usize) -> usize {
    let squares = ranges(width, memory).map(|range| range.len().pow(2));
    VALUES * size_of::<f32>() * squares.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use edge_lmm_ops::Format;

    use super::super::rounding;
    use super::*;

    #[test]
    fn wide_weights_are_divided_at_groups() {
        let of = |width, memory| ranges(width, memory).collect::<Vec<_>>();
        assert_eq!(of(3584, 4 << 30), std::slice::from_ref(&(0..3584)));
        assert_eq!(
            of(18_944, 4 << 30),
            [0..4736, 4736..9472, 9472..14_208, 14_208..18_944]
        );
        assert_eq!(memory_of_sums(18_944, 4 << 30), 5 * 4 * 4 * 4736 * 4736);
        assert_eq!(of(300, 0), [0..128, 128..256, 256..300]);
        assert!(of(0, 0).is_empty());
    }

    #[test]
    fn a_range_is_rounded_as_a_weight_of_its_own() {
        let value = |i: usize| ((i as f32 + 1.0) * 12.9898).sin() * 43_758.547;
        let values = |count: usize| -> Vec<f32> {
            (0..count).map(|i| value(i).rem_euclid(1.0) - 0.5).collect()
        };
        let (rows, cols) = (8, 300);
        let shape = |cols| MatrixShape::new(Format::Q4, rows, cols);
        let weights = values(rows * cols);
        let nearest = Quantized::new(shape(cols), &weights, None).expect("quants");
        let mut quantized = nearest.clone();
        for range in [128..256, 256..300] {
            let n = range.len();
            let inputs = values(n * 2 * n);
            let products = Products {
                columns: range.clone(),
                own: product_transposed(&inputs, &inputs, 2 * n),
                ..Products::default()
            };
            let objective = Objective::new(products, 2 * n, 0.01);
            objective.round(
                shape(cols),
                &weights,
                &mut quantized,
                |weights, quantized| {
                    rounding::gptq(weights, &objective.hessian, quantized);
                },
            );
            let own = columns(&weights, cols, range.clone());
            let mut alone = Quantized::new(shape(n), &own, None).expect("quants");
            rounding::gptq(&own, &objective.hessian, &mut alone);
            assert_eq!(
                columns(&quantized.quants, cols, range.clone()),
                alone.quants
            );
            assert_ne!(columns(&nearest.quants, cols, range), alone.quants);
        }
        let first = |quantized: &Quantized| columns(&quantized.quants, cols, 0..128);
        assert_eq!(first(&quantized), first(&nearest));
        assert_eq!(quantized.scales, nearest.scales);
    }
}
