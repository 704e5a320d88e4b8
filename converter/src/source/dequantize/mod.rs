//! Weights that a checkpoint stores quantized: AWQ, GPTQ, compressed-tensors, FP8 and the 4-bit
//! formats of bitsandbytes.
//!
//! Such a checkpoint has several tensors for each linear layer: codes, scales, zero points. They are
//! replaced by one tensor `weight` whose rows are dequantized when they are read, without rounding
//! beyond f32.

mod fp8;
mod integers;
mod nf4;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

use serde_json::Value;

use super::error::{Result, SourceError, malformed};
use super::view::{Stored, View};
use super::{Tensor, TensorInfo};

type Tensors = BTreeMap<String, Tensor>;

/// A quantized matrix.
pub(super) trait Quantized: Debug + Send + Sync {
    /// Appends the values at `columns` of a row, both inside the matrix.
    fn read(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>);
}

/// Replaces the tensors of quantized layers by their weights, if the method that `quantization`
/// describes is supported. Returns `false` if there are no such layers.
///
/// # Errors
/// If a tensor of a layer is missing or has the wrong type or shape.
pub(super) fn replace(file: &str, quantization: &Value, tensors: &mut Tensors) -> Result<bool> {
    let mut checkpoint = Layers {
        file,
        quantization,
        tensors,
    };
    match quantization.get("quant_method").and_then(Value::as_str) {
        Some("awq") => integers::awq(&mut checkpoint)?,
        Some("gptq") => integers::gptq(&mut checkpoint)?,
        Some("bitsandbytes") => nf4::replace(&mut checkpoint)?,
        Some("compressed-tensors") => {
            integers::compressed(&mut checkpoint)?;
            fp8::replace(&mut checkpoint)?;
        }
        Some("fp8") => fp8::replace(&mut checkpoint)?,
        _ => {}
    }
    let mut views = tensors.values().map(|tensor| &tensor.view);
    Ok(views.any(|view| matches!(view, View::Quantized { .. })))
}

/// The layers of a quantized checkpoint.
struct Layers<'a> {
    /// Name of the checkpoint, for messages.
    file: &'a str,
    /// `quantization_config`.
    quantization: &'a Value,
    tensors: &'a mut Tensors,
}

impl Layers<'_> {
    /// Returns the layers that have a tensor with this suffix, without it.
    fn with(&self, suffix: &str) -> Vec<String> {
        let names = self.tensors.keys();
        names
            .filter_map(|name| Some(name.strip_suffix(suffix)?.to_owned()))
            .collect()
    }

    /// Takes a tensor that is stored as one piece, with its shape.
    fn take(&mut self, name: &str) -> Option<(Stored, Vec<usize>)> {
        let Tensor { info, view } = self.tensors.remove(name)?;
        match view {
            View::Whole(stored) => Some((stored, info.shape)),
            _ => None,
        }
    }

    /// Takes a tensor of a layer that must exist.
    fn need(&mut self, name: &str) -> Result<(Stored, Vec<usize>)> {
        self.take(name).ok_or_else(|| SourceError::MissingTensor {
            file: self.file.to_owned(),
            tensor: name.to_owned(),
            needed_for: "the layer is quantized and its weights cannot be computed without it"
                .to_owned(),
        })
    }

    /// Takes a tensor of 32-bit integers.
    fn integers(&mut self, name: &str) -> Result<(Stored, Vec<usize>)> {
        let (stored, shape) = self.need(name)?;
        match stored.dtype() {
            "I32" | "U32" => Ok((stored, shape)),
            other => Err(self.wrong(name, format!("type {other}"), "type I32")),
        }
    }

    /// Takes a tensor of numbers that can be read as f32.
    fn numbers(&mut self, name: &str) -> Result<(Stored, Vec<usize>)> {
        let (stored, shape) = self.need(name)?;
        match stored.dtype() {
            "F32" | "F16" | "BF16" => Ok((stored, shape)),
            other => Err(self.wrong(name, format!("type {other}"), "F32, F16 or BF16")),
        }
    }

    /// Adds the weight of a layer. `kind` names its type.
    fn insert(
        &mut self,
        layer: &str,
        kind: String,
        shape: [usize; 2],
        quantized: impl Quantized + 'static,
    ) {
        let info = TensorInfo {
            dtype: kind,
            shape: shape.to_vec(),
        };
        let view = View::Quantized {
            matrix: Box::new(quantized),
            columns: shape[1],
        };
        self.tensors
            .insert(format!("{layer}.weight"), Tensor { info, view });
    }

    /// Returns an integer of the configuration.
    fn number(&self, key: &str) -> Option<u64> {
        self.quantization.get(key)?.as_u64()
    }

    fn wrong(&self, tensor: &str, found: String, expected: impl Into<String>) -> SourceError {
        malformed(self.file, format!("tensor {tensor} with {found}"), expected)
    }

    fn unsupported(&self, what: &str, found: String, supported: &str) -> SourceError {
        SourceError::Unsupported {
            file: self.file.to_owned(),
            what: format!("quantization_config.{what}"),
            found,
            supported: format!("{supported}; or use the checkpoint that this was made from"),
        }
    }
}
