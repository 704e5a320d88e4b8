//! Rows of tensors on the host, and rows chosen by index.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};
use edge_lmm_ops::{KernelBackend, pool, squared_distances};

use crate::error::ModelError;

/// Returns indices as a tensor.
pub(crate) fn indices<B: KernelBackend>(places: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let len = places.len();
    Tensor::from_data(TensorData::new(places, [len]), device)
}

/// Reads a tensor of floating-point numbers.
pub(crate) fn read<B: KernelBackend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    let data = x.into_data();
    data.into_vec()
        .map_err(|error| ModelError::config(format!("values are not f32: {error:?}")))
}

/// Scales a row to length 1.
pub(crate) fn normalize(row: &mut [f32]) {
    let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
    let scale = 1.0 / square.sqrt().max(1e-12);
    row.iter_mut()
        .for_each(|v| *v = (f64::from(*v) * scale) as f32);
}

/// Rows scaled to length 1.
pub(crate) struct Directions {
    values: Vec<f32>,
    width: usize,
}

impl Directions {
    /// Reads the rows of `x`.
    pub fn of<B: KernelBackend>(x: Tensor<B, 2>) -> Result<Self, ModelError> {
        let [_, width] = x.dims();
        let mut values = read(x)?;
        values.chunks_exact_mut(width).for_each(normalize);
        Ok(Self { values, width })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Returns the squared distances of `rows` to all rows: the square of the chord is twice the
    /// cosine distance, and precise for rows that are almost equal.
    pub fn distances(&self, rows: Range<usize>) -> Vec<f32> {
        self.distances_to(rows, self)
    }

    /// Returns the squared distances of `rows` to all rows of `other`, which have the same width.
    pub fn distances_to(&self, rows: Range<usize>, other: &Self) -> Vec<f32> {
        let mut out = vec![0.0; rows.len() * other.len()];
        let rows = &self.values[rows.start * self.width..rows.end * self.width];
        squared_distances(&pool::global(), rows, &other.values, self.width, &mut out);
        out
    }
}

/// Returns the cosine of the angle between two directions with a squared distance; 0 for rows that
/// are not numbers.
pub(crate) fn cosine(squared_distance: f32) -> f32 {
    match squared_distance.is_finite() {
        true => 1.0 - squared_distance / 2.0,
        false => 0.0,
    }
}
