//! Factors that are multiplied into the rows and columns of a weight.

/// Factors of a weight's rows and columns; empty means 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Factors {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Factors {
    /// Multiplies the rows by further factors, one per row.
    pub(crate) fn multiply_rows(&mut self, factors: &[f32]) {
        multiply(&mut self.rows, factors);
    }

    /// Multiplies the columns by further factors, one per column.
    pub(crate) fn multiply_columns(&mut self, factors: &[f32]) {
        multiply(&mut self.columns, factors);
    }

    /// Applies the factors to `values`, which are whole rows from `first` on.
    pub(crate) fn apply(&self, first: usize, cols: usize, values: &mut [f32]) {
        for (row, values) in (first..).zip(values.chunks_exact_mut(cols)) {
            if let Some(factor) = self.rows.get(row) {
                values.iter_mut().for_each(|value| *value *= factor);
            }
            // No factors of columns leave the row as it is.
            for (value, factor) in values.iter_mut().zip(&self.columns) {
                *value *= factor;
            }
        }
    }
}

fn multiply(all: &mut Vec<f32>, factors: &[f32]) {
    if all.is_empty() {
        all.extend_from_slice(factors);
    } else {
        all.iter_mut().zip(factors).for_each(|(a, b)| *a *= b);
    }
}
