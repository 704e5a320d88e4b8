//! Updates of a matrix by a product of two small ones.

use std::ops::Range;

use super::super::view::{Stored, Unreadable, View};

/// A matrix of an adapter.
#[derive(Debug)]
pub(super) struct Factor {
    stored: Stored,
    rows: usize,
    columns: usize,
    /// `true` if columns are stored one after the other.
    transposed: bool,
}

impl Factor {
    /// Takes a matrix `[rows, columns]`.
    pub(super) fn new(stored: Stored, [rows, columns]: [usize; 2]) -> Self {
        Self {
            stored,
            rows,
            columns,
            transposed: false,
        }
    }

    /// Takes the transpose of a stored matrix `[rows, columns]`.
    pub(super) fn transposed(stored: Stored, [rows, columns]: [usize; 2]) -> Self {
        Self {
            stored,
            rows: columns,
            columns: rows,
            transposed: true,
        }
    }

    /// Appends a row.
    fn read_row(&self, row: usize, out: &mut Vec<f32>) -> Result<(), Unreadable> {
        if !self.transposed {
            let first = row * self.columns;
            return self.stored.read(first..first + self.columns, out);
        }
        out.extend((0..self.columns).map(|column| self.stored.value(column * self.rows + row)));
        Ok(())
    }

    fn read(&self) -> Result<Vec<f32>, Unreadable> {
        let mut values = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            self.read_row(row, &mut values)?;
        }
        Ok(values)
    }
}

/// The sum of a matrix and `scale * left * right`. With magnitudes (DoRA), each row of the sum is
/// then scaled to have its magnitude as its norm.
#[derive(Debug)]
pub(in super::super) struct LowRank {
    /// `[rows, rank]`.
    pub(super) left: Factor,
    /// `[rank, columns]`.
    pub(super) right: Factor,
    pub(super) scale: f32,
    /// One per row.
    pub(super) magnitudes: Option<Vec<f32>>,
}

impl LowRank {
    /// Returns `true` for the update of a table of embeddings.
    pub(super) fn is_of_table(&self) -> bool {
        self.left.transposed
    }

    /// Appends the elements `range` of the sum with `base`.
    pub(in super::super) fn read(
        &self,
        base: &View,
        range: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), Unreadable> {
        let columns = self.right.columns;
        let right = self.right.read()?;
        let (mut left, mut sums) = (Vec::new(), Vec::new());
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / columns, at % columns);
            let length = (columns - column).min(range.end - at);
            // The norm of a row needs all of it.
            let read = match self.magnitudes {
                Some(_) => 0..columns,
                None => column..column + length,
            };
            let start = out.len();
            base.read(row * columns + read.start..row * columns + read.end, out)?;
            left.clear();
            self.left.read_row(row, &mut left)?;
            sums.clear();
            sums.resize(read.len(), 0.0);
            for (&factor, right) in left.iter().zip(right.chunks_exact(columns)) {
                for (sum, value) in sums.iter_mut().zip(&right[read.clone()]) {
                    *sum += factor * value;
                }
            }
            for (value, sum) in out[start..].iter_mut().zip(&sums) {
                *value += self.scale * sum;
            }
            if let Some(magnitudes) = &self.magnitudes {
                scale_to(magnitudes[row], &mut out[start..]);
                out.truncate(start + column + length);
                out.drain(start..start + column);
            }
            at += length;
        }
        Ok(())
    }
}

/// Scales a row that is not zero to the norm `magnitude`.
fn scale_to(magnitude: f32, row: &mut [f32]) {
    let squares: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
    if squares > 0.0 {
        let factor = (f64::from(magnitude) / squares.sqrt()) as f32;
        row.iter_mut().for_each(|value| *value *= factor);
    }
}
