//! Statistics of the inputs of a layer.

use std::ops::Range;

use edge_lmm_models::weights::Extent;

use super::products::{add_product, transposed};

/// Weighted sums over the inputs of a layer.
///
/// An input `x` has the weight `1 / (|x|² + m)`, where `m` is the median of `|x|²` in its sample. The
/// norms that follow a layer divide its outputs by their size, so that an error matters relative to
/// it. Without weights, a few tokens (often the first one of a text) with inputs that are a hundred
/// times larger than the others would decide alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputStatistics {
    /// Number of inputs that were seen.
    pub tokens: usize,
    /// Sum of their weights.
    weight: f64,
    /// Sum of the squares of each element.
    pub squares: Vec<f64>,
    /// The sums of products that are collected, one for each range of elements.
    products: Vec<Products>,
}

/// Products of the elements `x` of an input that lie in a range.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Products {
    /// The range.
    pub columns: Range<usize>,
    /// The range of the elements `y` of the float model's inputs.
    pub float_columns: Range<usize>,
    /// `x xᵀ`: `[n, n]`; of sums only on and below the diagonal.
    pub own: Vec<f32>,
    /// `(y - x) xᵀ`: `[elements y, n]`, if inputs of the float model were seen.
    pub drift: Option<Vec<f32>>,
}

impl InputStatistics {
    /// Creates the statistics of inputs of `width` elements, with sums of products in each of the
    /// ranges `columns`.
    pub fn new(width: usize, columns: impl IntoIterator<Item = Range<usize>>) -> Self {
        let products = |columns: Range<usize>| Products {
            own: vec![0.0; columns.len() * columns.len()],
            columns,
            ..Products::default()
        };
        Self {
            squares: vec![0.0; width],
            products: columns.into_iter().map(products).collect(),
            ..Self::default()
        }
    }

    /// Creates the statistics of one input with these squares.
    pub(super) fn of_mean_squares(squares: &[f32]) -> Self {
        Self {
            tokens: 1,
            weight: 1.0,
            squares: squares.iter().copied().map(f64::from).collect(),
            ..Self::default()
        }
    }

    /// Adds inputs, `[tokens, width]`, and what they are in the float model, if that is known. Of the
    /// float model's inputs, `kept` are those of the quantized model. Inputs with elements that are not
    /// finite are left out.
    pub fn add(&mut self, values: &[f32], float: Option<&[f32]>, kept: &Extent) {
        let width = self.squares.len();
        let float_width = float.map_or(width, |_| kept.source_len());
        let float = float.unwrap_or(values).chunks_exact(float_width);
        let finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
        let rows: Vec<(&[f32], &[f32])> = (values.chunks_exact(width).zip(float))
            .filter(|(row, float)| finite(row) && finite(float))
            .collect();
        if rows.is_empty() {
            return;
        }
        let weights = weights(rows.iter().map(|(_, float)| *float));
        for ((row, _), weight) in rows.iter().zip(&weights) {
            for (sum, x) in self.squares.iter_mut().zip(*row) {
                *sum += weight * f64::from(*x) * f64::from(*x);
            }
        }
        self.tokens += rows.len();
        self.weight += weights.iter().sum::<f64>();
        if self.products.is_empty() {
            return;
        }
        let roots = weights.iter().map(|weight| weight.sqrt() as f32);
        let (mut own, mut moved) = (Vec::new(), Vec::new());
        for ((row, float), root) in rows.iter().zip(roots) {
            own.extend(row.iter().map(|x| x * root));
            let first = moved.len();
            moved.extend(float.iter().map(|y| y * root));
            for (place, x) in row.iter().enumerate() {
                let at = if float_width == width {
                    place
                } else {
                    kept.source_index(place)
                };
                moved[first + at] -= x * root;
            }
        }
        let own = transposed(&own, width);
        let moved = (moved.iter().any(|&x| x != 0.0)).then(|| transposed(&moved, float_width));
        for products in &mut self.products {
            let at = |columns: &Range<usize>| columns.start * rows.len()..columns.end * rows.len();
            let own = &own[at(&products.columns)];
            add_product(&mut products.own, own, own, rows.len(), true);
            let Some(moved) = &moved else {
                continue;
            };
            // Elements that are pruned count to the range of the one before.
            let start = |column| match column {
                0 => 0,
                column if column == width => float_width,
                column => kept.source_index(column),
            };
            products.float_columns = start(products.columns.start)..start(products.columns.end);
            let count = products.float_columns.len() * products.columns.len();
            let drift = products.drift.get_or_insert_with(|| vec![0.0; count]);
            let moved = &moved[at(&products.float_columns)];
            add_product(drift, moved, own, rows.len(), false);
        }
    }

    /// Divides all inputs that were seen by `scales`, one for each element.
    pub(super) fn divide(&mut self, scales: &[f32]) {
        for (square, scale) in self.squares.iter_mut().zip(scales) {
            *square /= f64::from(*scale).powi(2);
        }
    }

    /// Returns the factor that turns sums into means.
    fn factor(&self) -> f64 {
        match self.weight > 0.0 {
            true => 1.0 / self.weight,
            false => 0.0,
        }
    }

    /// Returns the mean square of each element.
    pub fn mean_squares(&self) -> Vec<f32> {
        let factor = self.factor();
        self.squares
            .iter()
            .map(|sum| (sum * factor) as f32)
            .collect()
    }

    /// Returns the means of the products, as far as they were collected.
    pub(super) fn into_mean_products(self) -> Vec<Products> {
        let factor = self.factor() as f32;
        let mut all = self.products;
        for products in &mut all {
            let n = products.columns.len();
            for row in 0..n {
                for column in 0..=row {
                    products.own[row * n + column] *= factor;
                    products.own[column * n + row] = products.own[row * n + column];
                }
            }
            let drift = products.drift.iter_mut().flatten();
            drift.for_each(|x| *x *= factor);
        }
        all
    }
}

/// Returns the weights of the inputs of a sample; 0 for those whose size is below single precision, as
/// is that of most others.
fn weights<'a>(inputs: impl Iterator<Item = &'a [f32]>) -> Vec<f64> {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let sizes: Vec<f64> = inputs.map(|row| row.iter().map(square).sum()).collect();
    let mut sorted = sizes.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let least = f64::from(f32::MIN_POSITIVE).powi(2);
    let weight = |size: &f64| match size + median > least {
        true => 1.0 / (size + median),
        false => 0.0,
    };
    sizes.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_inputs_do_not_decide_alone() {
        let mut statistics = InputStatistics::new(2, std::iter::once(0..2));
        let inputs = [1.0, 0.0, 1.0, 0.0, 0.0, 1000.0];
        statistics.add(&inputs, None, &Extent::from(2));
        // The median of the sizes is 1: the first two inputs have a weight of 1/2, the last one of
        // nearly 1e-6.
        let means = statistics.mean_squares();
        assert!((means[0] - 1.0).abs() < 1e-5 && (means[1] - 1.0).abs() < 1e-5);
        let products = statistics.into_mean_products().remove(0);
        let own = products.own;
        assert!((own[0] - means[0]).abs() < 1e-5 && (own[3] - means[1]).abs() < 1e-5);
        assert_eq!((own[1], own[2], products.drift), (0.0, 0.0, None));
    }

    #[test]
    fn ranges_have_the_products_of_their_own_elements() {
        let kept = Extent::Some {
            of: 6,
            indices: [1, 2, 4, 5].into(),
        };
        let value = |i: usize| ((i as f32 + 1.0) * 12.9898).sin();
        let inputs: Vec<f32> = (0..12).map(value).collect();
        let float: Vec<f32> = (12..30).map(value).collect();
        let of = |ranges: &[Range<usize>]| {
            let mut statistics = InputStatistics::new(4, ranges.iter().cloned());
            statistics.add(&inputs, Some(&float), &kept);
            statistics.into_mean_products()
        };
        let whole = of(std::slice::from_ref(&(0..4))).remove(0);
        assert_eq!(whole.float_columns, 0..6);
        let parts = of(&[0..2, 2..4]);
        let float_columns: Vec<_> = parts
            .iter()
            .map(|part| part.float_columns.clone())
            .collect();
        assert_eq!(float_columns, [0..4, 4..6]);
        for part in parts {
            let element = |row: usize, column: usize| (row * 4) + part.columns.start + column;
            for (i, x) in part.own.iter().enumerate() {
                let at = element(part.columns.start + i / 2, i % 2);
                assert!((x - whole.own[at]).abs() < 1e-6);
            }
            for (i, x) in part.drift.expect("drift").iter().enumerate() {
                let at = element(part.float_columns.start + i / 2, i % 2);
                assert!((x - whole.drift.as_ref().expect("drift")[at]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn inputs_that_are_zero_are_no_error() {
        let mut statistics = InputStatistics::new(2, []);
        statistics.add(&[0.0; 6], None, &Extent::from(2));
        assert_eq!(statistics.mean_squares(), [0.0; 2]);
        statistics.add(&[0.0, 0.0, 0.0, 0.0, 3.0, 0.0], None, &Extent::from(2));
        assert_eq!(statistics.mean_squares(), [9.0, 0.0]);
    }
}
