//! Statistics of the inputs of a layer.

use edge_lmm_models::weights::Extent;

use super::products::{add_product, transposed};

/// Sums over the inputs of a layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputStatistics {
    /// Number of inputs that were seen.
    pub tokens: usize,
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
            squares: vec![0.0; width],
            products: products.then(|| vec![0.0; width * width]),
            drift: None,
        }
    }

    /// Creates the statistics of one input with these squares.
    pub(super) fn of_mean_squares(squares: &[f32]) -> Self {
        Self {
            tokens: 1,
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
        for (row, _) in &rows {
            for (sum, x) in self.squares.iter_mut().zip(*row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        self.tokens += rows.len();
        let Some(products) = &mut self.products else {
            return;
        };
        let own: Vec<f32> = rows.iter().flat_map(|(row, _)| *row).copied().collect();
        let inputs = transposed(&own, width);
        add_product(products, &inputs, &inputs, rows.len(), true);
        let mut moved: Vec<f32> = rows.iter().flat_map(|(_, float)| *float).copied().collect();
        for (moved, row) in moved.chunks_exact_mut(float_width).zip(&rows) {
            for (place, x) in row.0.iter().enumerate() {
                let at = if float_width == width {
                    place
                } else {
                    kept.source_index(place)
                };
                moved[at] -= x;
            }
        }
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

    /// Returns the mean square of each element.
    pub fn mean_squares(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f64;
        self.squares
            .iter()
            .map(|sum| (sum / tokens) as f32)
            .collect()
    }

    /// Returns the means of `x xᵀ` and of `(y - x) xᵀ`, as far as they were collected.
    pub fn into_mean_products(self) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let factor = 1.0 / self.tokens.max(1) as f32;
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
