//! Statistics of the inputs of a layer.

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
    /// Sum of `x xᵀ`: `[width, width]`, on and below the diagonal, if it is collected.
    products: Option<Vec<f32>>,
    /// Sum of `(y - x) xᵀ`: `[width of y, width]`, if inputs `y` of the float model were seen.
    drift: Option<Vec<f32>>,
}

impl InputStatistics {
    /// Creates the statistics of inputs of `width` elements, with the sum of `x xᵀ` or without.
    pub fn new(width: usize, products: bool) -> Self {
        Self {
            tokens: 0,
            weight: 0.0,
            squares: vec![0.0; width],
            products: products.then(|| vec![0.0; width * width]),
            drift: None,
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
        let Some(products) = &mut self.products else {
            return;
        };
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
        let inputs = transposed(&own, width);
        add_product(products, &inputs, &inputs, rows.len(), true);
        if moved.iter().any(|&x| x != 0.0) {
            let new = || vec![0.0; float_width * width];
            let drift = self.drift.get_or_insert_with(new);
            add_product(
                drift,
                &transposed(&moved, float_width),
                &inputs,
                rows.len(),
                false,
            );
        }
    }

    /// Divides all inputs that were seen by `scales`, one for each element.
    pub(super) fn divide(&mut self, scales: &[f32]) {
        for (square, scale) in self.squares.iter_mut().zip(scales) {
            *square /= f64::from(*scale).powi(2);
        }
        let width = scales.len().max(1);
        if let Some(products) = &mut self.products {
            for (row, scale) in products.chunks_exact_mut(width).zip(scales) {
                let own = row.iter_mut().zip(scales);
                own.for_each(|(sum, other)| *sum /= scale * other);
            }
        }
        if let Some(drift) = &mut self.drift {
            for row in drift.chunks_exact_mut(width) {
                let own = row.iter_mut().zip(scales);
                own.for_each(|(sum, scale)| *sum /= scale);
            }
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

    /// Returns the means of `x xᵀ` and of `(y - x) xᵀ`, as far as they were collected.
    pub fn into_mean_products(self) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let factor = self.factor() as f32;
        let width = self.squares.len();
        let products = self.products.map(|mut products| {
            for row in 0..width {
                for column in 0..=row {
                    products[row * width + column] *= factor;
                    products[column * width + row] = products[row * width + column];
                }
            }
            products
        });
        let drift = self.drift.map(|mut drift| {
            drift.iter_mut().for_each(|x| *x *= factor);
            drift
        });
        (products, drift)
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
        let mut statistics = InputStatistics::new(2, true);
        let inputs = [1.0, 0.0, 1.0, 0.0, 0.0, 1000.0];
        statistics.add(&inputs, None, &Extent::from(2));
        // The median of the sizes is 1: the first two inputs have a weight of 1/2, the last one of
        // nearly 1e-6.
        let means = statistics.mean_squares();
        assert!((means[0] - 1.0).abs() < 1e-5 && (means[1] - 1.0).abs() < 1e-5);
        let (products, drift) = statistics.into_mean_products();
        let products = products.expect("products");
        assert!((products[0] - means[0]).abs() < 1e-5 && (products[3] - means[1]).abs() < 1e-5);
        assert_eq!((products[1], products[2], drift), (0.0, 0.0, None));
    }

    #[test]
    fn inputs_that_are_zero_are_no_error() {
        let mut statistics = InputStatistics::new(2, false);
        statistics.add(&[0.0; 6], None, &Extent::from(2));
        assert_eq!(statistics.mean_squares(), [0.0; 2]);
        statistics.add(&[0.0, 0.0, 0.0, 0.0, 3.0, 0.0], None, &Extent::from(2));
        assert_eq!(statistics.mean_squares(), [9.0, 0.0]);
    }
}
