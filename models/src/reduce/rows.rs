//! Rows of tensors on the host, and rows chosen by index.

use burn::tensor::{Int, Tensor, TensorData};
use edge_lmm_ops::KernelBackend;

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
