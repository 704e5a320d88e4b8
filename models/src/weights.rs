//! Where every weight of a model comes from and how it is stored.
//!
//! A model is built once, by one piece of code, for both programs: its `init` walks the module
//! tree with a [`Scope`] and declares each weight with its name in the record (the path of burn's
//! module field) and the checkpoint tensors it is made of (Hugging Face names). The converter
//! reads the declarations ([`Weights::into_specs`]) and writes exactly those weights; the runtime
//! gets the modules, unallocated, and fills them from the record. So a record always fits the
//! code that reads it.

use std::cell::RefCell;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Int, Shape, Tensor};
use edge_lmm_ops::{Format, KernelBackend, MatrixShape};

use crate::error::ModelError;
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm};

/// The part of a model that a weight belongs to; quantization is chosen per part.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The vision encoder.
    Vision,
    /// The audio encoder.
    Audio,
    /// What maps features into the language model: merger, MLP, Q-Former.
    Projector,
    /// The language model.
    Text,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vision => "vision",
            Self::Audio => "audio",
            Self::Projector => "projector",
            Self::Text => "text",
        })
    }
}

/// Rows that one checkpoint tensor gives to a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSource {
    /// Checkpoint name.
    pub tensor: String,
    /// Rows it must have; the rest of its dimensions are the columns.
    pub rows: usize,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A packed matrix in the kernels' layout, of a format chosen at conversion.
    Packed {
        /// Inputs.
        cols: usize,
    },
    /// Plain f32 values, `[len]` or, with columns, `[rows, cols]`.
    Dense {
        /// Columns, for a matrix.
        cols: Option<usize>,
    },
}

/// One weight of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name in the record: the path of the module's field.
    pub name: String,
    /// Part of the model.
    pub part: Part,
    /// How it is stored.
    pub storage: Storage,
    /// Checkpoint tensors, stacked by rows in this order.
    pub sources: Vec<RowSource>,
}

impl WeightSpec {
    /// All rows (elements, for a vector).
    pub fn rows(&self) -> usize {
        self.sources.iter().map(|source| source.rows).sum()
    }

    /// Columns; 1 for a vector.
    pub fn cols(&self) -> usize {
        match self.storage {
            Storage::Packed { cols } => cols,
            Storage::Dense { cols } => cols.unwrap_or(1),
        }
    }
}

/// Chooses the format of a packed weight.
type ChooseFormat<'a> = dyn Fn(&WeightSpec) -> Result<Format, ModelError> + 'a;

/// Collects the weights of a model while its modules are built.
pub struct Weights<'a, B: KernelBackend> {
    device: B::Device,
    format: Box<ChooseFormat<'a>>,
    specs: RefCell<Vec<WeightSpec>>,
}

impl<'a, B: KernelBackend> Weights<'a, B> {
    /// `format` is asked for the format of every packed weight.
    pub fn new(
        device: B::Device,
        format: impl Fn(&WeightSpec) -> Result<Format, ModelError> + 'a,
    ) -> Self {
        Self {
            device,
            format: Box::new(format),
            specs: RefCell::new(Vec::new()),
        }
    }

    /// The root of the record's and the checkpoint's names.
    pub fn root(&self, part: Part) -> Scope<'_, 'a, B> {
        Scope {
            weights: self,
            name: String::new(),
            source: String::new(),
            part,
        }
    }

    /// Everything declared, in order.
    pub fn into_specs(self) -> Vec<WeightSpec> {
        self.specs.into_inner()
    }
}

/// A place in the module tree: prefixes of the record's and of the checkpoint's names.
pub struct Scope<'s, 'a, B: KernelBackend> {
    weights: &'s Weights<'a, B>,
    name: String,
    source: String,
    part: Part,
}

impl<B: KernelBackend> Clone for Scope<'_, '_, B> {
    fn clone(&self) -> Self {
        Self {
            weights: self.weights,
            name: self.name.clone(),
            source: self.source.clone(),
            part: self.part,
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    match (prefix.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}.{name}"),
    }
}

fn borrowed(sources: &[(String, usize)]) -> Vec<(&str, usize)> {
    sources
        .iter()
        .map(|(name, rows)| (name.as_str(), *rows))
        .collect()
}

impl<B: KernelBackend> Scope<'_, '_, B> {
    /// A child module; an empty `source` stays at the checkpoint's prefix.
    pub fn child(&self, name: &str, source: &str) -> Self {
        Self {
            name: join(&self.name, name),
            source: join(&self.source, source),
            ..self.clone()
        }
    }

    /// The same place, for weights of another part.
    pub fn part(&self, part: Part) -> Self {
        Self {
            part,
            ..self.clone()
        }
    }

    fn declare(&self, name: &str, storage: Storage, sources: &[(&str, usize)]) -> WeightSpec {
        let spec = WeightSpec {
            name: join(&self.name, name),
            part: self.part,
            storage,
            sources: sources
                .iter()
                .map(|&(tensor, rows)| RowSource {
                    tensor: join(&self.source, tensor),
                    rows,
                })
                .collect(),
        };
        self.weights.specs.borrow_mut().push(spec.clone());
        spec
    }

    /// A packed matrix made of the rows of `sources` (`(checkpoint name, rows)`).
    ///
    /// # Errors
    /// If the record does not say how it is stored, or its size overflows.
    pub fn packed(
        &self,
        name: &str,
        sources: &[(&str, usize)],
        cols: usize,
    ) -> Result<(Param<Tensor<B, 1, Int>>, MatrixShape), ModelError> {
        let spec = self.declare(name, Storage::Packed { cols }, sources);
        let format = (self.weights.format)(&spec)?;
        let shape = MatrixShape {
            format,
            rows: spec.rows(),
            cols,
        };
        let bytes = shape.byte_len().ok_or_else(|| {
            ModelError::config(format!(
                "{}: a matrix of {} x {cols} does not fit into memory",
                spec.name, shape.rows
            ))
        })?;
        let param = Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([bytes], (device, DType::U8)),
            self.weights.device.clone(),
            false,
            Shape::new([bytes]),
        );
        Ok((param, shape))
    }

    /// A dense f32 vector.
    pub fn vector(&self, name: &str, sources: &[(&str, usize)]) -> Param<Tensor<B, 1>> {
        let spec = self.declare(name, Storage::Dense { cols: None }, sources);
        let len = spec.rows();
        Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([len], device),
            self.weights.device.clone(),
            false,
            Shape::new([len]),
        )
    }

    /// A dense f32 matrix.
    pub fn matrix(
        &self,
        name: &str,
        source: &str,
        rows: usize,
        cols: usize,
    ) -> Param<Tensor<B, 2>> {
        self.declare(name, Storage::Dense { cols: Some(cols) }, &[(source, rows)]);
        Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([rows, cols], device),
            self.weights.device.clone(),
            false,
            Shape::new([rows, cols]),
        )
    }

    /// A linear layer from the modules `sources` (`(checkpoint module, outputs)`) stacked, each
    /// with a `weight` and, if asked for, a `bias`.
    ///
    /// # Errors
    /// As [`Self::packed`].
    pub fn linear(
        &self,
        name: &str,
        sources: &[(&str, usize)],
        cols: usize,
        bias: bool,
    ) -> Result<Linear<B>, ModelError> {
        let scope = self.child(name, "");
        let names = |field: &str| -> Vec<(String, usize)> {
            sources
                .iter()
                .map(|&(module, rows)| (join(module, field), rows))
                .collect()
        };
        let (weight, shape) = scope.packed("weight", &borrowed(&names("weight")), cols)?;
        let bias = bias.then(|| scope.vector("bias", &borrowed(&names("bias"))));
        Ok(Linear::new(weight, bias, shape))
    }

    /// A table of `rows` embeddings.
    ///
    /// # Errors
    /// As [`Self::packed`].
    pub fn embedding(
        &self,
        name: &str,
        source: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Embedding<B>, ModelError> {
        let scope = self.child(name, source);
        let (weight, shape) = scope.packed("weight", &[("weight", rows)], cols)?;
        Ok(Embedding::new(weight, shape))
    }

    /// A root mean square norm.
    pub fn rms_norm(&self, name: &str, source: &str, width: usize, eps: f64) -> RmsNorm<B> {
        let scope = self.child(name, source);
        RmsNorm::new(scope.vector("gamma", &[("weight", width)]), eps)
    }

    /// A layer norm.
    pub fn layer_norm(&self, name: &str, source: &str, width: usize, eps: f64) -> LayerNorm<B> {
        let scope = self.child(name, source);
        LayerNorm::new(
            scope.vector("gamma", &[("weight", width)]),
            scope.vector("beta", &[("bias", width)]),
            eps,
        )
    }
}
