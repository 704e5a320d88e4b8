//! Writes captured stages to a safetensors file (`--dump-stages`), under the names that reference
//! dumps use.

use std::collections::BTreeMap;

use edge_lmm_ops::probe::Captured;

pub use edge_lmm_ops::probe;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView};

use crate::output::{Output, OutputError};

/// Captured values that are whole numbers, stored as I32.
const INTEGERS: [&str; 4] = ["input_ids", "position_ids", "rope_delta", "grid_thw"];

/// Error of writing captured stages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// A tensor does not have the shape that was captured with it.
    #[error("the captured stages cannot be written: {0}")]
    Tensor(#[from] SafeTensorError),
    /// The file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes `captured` and finishes the file.
///
/// # Errors
/// If the file cannot be written.
pub fn write(file: Output, captured: &BTreeMap<String, Captured>) -> Result<(), DumpError> {
    let bytes: Vec<(&str, Dtype, &[usize], Vec<u8>)> = captured
        .iter()
        .map(|(name, tensor)| {
            let name = name.as_str();
            let (dtype, bytes): (_, Vec<u8>) = if INTEGERS.contains(&name) {
                let integers = tensor.values.iter().map(|&v| v as i32);
                (Dtype::I32, integers.flat_map(i32::to_le_bytes).collect())
            } else {
                let floats = tensor.values.iter();
                (Dtype::F32, floats.flat_map(|v| v.to_le_bytes()).collect())
            };
            (name, dtype, tensor.shape.as_slice(), bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?))
        })
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    Ok(file.finish_with(&safetensors::serialize(views, None)?)?)
}
