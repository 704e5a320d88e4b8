//! Statistics of the inputs of a layer.

use super::products::{product_transposed, transposed};

/// Sums over the inputs of a layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputStatistics {
    /// Number of inputs that were seen.
    pub tokens: usize,
    /// Sum of the squares of each element.
    pub squares: Vec<f64>,
    /// Sum of `x xᵀ`: `[width, width]`, if it is collected.
    pub products: Option<Vec<f32>>,
}

impl InputStatistics {
    /// Creates the statistics of inputs of `width` elements, with the sum of `x xᵀ` or without.
    pub fn new(width: usize, products: bool) -> Self {
        Self {
            tokens: 0,
            squares: vec![0.0; width],
            products: products.then(|| vec![0.0; width * width]),
        }
    }

    /// Adds inputs: `[tokens, width]`. Those with elements that are not finite are left out.
    pub fn add(&mut self, values: &[f32]) {
        let width = self.squares.len();
        let finite = |row: &&[f32]| row.iter().all(|x| x.is_finite());
        let rows: Vec<&[f32]> = values.chunks_exact(width).filter(finite).collect();
        if rows.is_empty() {
            return;
        }
        for row in &rows {
            for (sum, x) in self.squares.iter_mut().zip(*row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        self.tokens += rows.len();
        if let Some(products) = &mut self.products {
            let inputs = transposed(&rows.concat(), width);
            let sums = product_transposed(&inputs, &inputs, rows.len());
            products.iter_mut().zip(sums).for_each(|(p, sum)| *p += sum);
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

    /// Returns the mean of `x xᵀ`, if it was collected.
    pub fn into_mean_products(self) -> Option<Vec<f32>> {
        let factor = 1.0 / self.tokens.max(1) as f32;
        let mut products = self.products?;
        products.iter_mut().for_each(|p| *p *= factor);
        Some(products)
    }
}
