//! Source and storage of every weight of a model.
//!
//! A model is built once, by one piece of code, for both programs: its `init` walks the module
//! tree with a [`Scope`] and declares each weight with its name in the record (the path of burn's
//! module field) and the checkpoint tensors it is made of (Hugging Face names). The converter
//! reads the declarations ([`Weights::into_specs`]) and writes exactly those weights; the runtime
//! gets the modules, unallocated, and fills them from the record. So a record always fits the
//! code that reads it.
//!
//! A declaration also says along which named dimension the rows and columns of a matrix run
//! ([`Scope::dimension`]), so that pruning takes the same channels out of all of them, and which
//! module before a linear layer can take a scale of its inputs ([`Fold`]).

mod extent;
mod spec;

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Shape, Tensor};
use edge_lmm_ops::{Activation, Format, KernelBackend, MatrixShape};

use crate::error::ModelError;
use crate::layers::{Embedding, LayerNorm, Linear, PackedParam, RmsNorm};

pub use extent::{Extent, Selection};
pub use spec::{Fold, Inputs, Part, RowSource, Storage, WeightSpec};

/// Chooses the format of a packed weight.
type ChooseFormat<'a> = dyn Fn(&WeightSpec) -> Result<Format, ModelError> + 'a;
/// Returns `true` if a weight with this name exists.
type HasTail<'a> = dyn Fn(&str) -> bool + 'a;
/// Returns `true` if there is a weight with this name in the record, or a tensor with this name in the
/// checkpoint.
type HasWeight<'a> = dyn Fn(&str, &str) -> bool + 'a;

/// Collects the weights of a model while its modules are built.
pub struct Weights<'a, B: KernelBackend> {
    device: B::Device,
    format: Box<ChooseFormat<'a>>,
    has_tail: Box<HasTail<'a>>,
    has_weight: Box<HasWeight<'a>>,
    selection: Selection,
    specs: RefCell<Vec<WeightSpec>>,
    dimensions: RefCell<BTreeMap<String, usize>>,
}

impl<'a, B: KernelBackend> Weights<'a, B> {
    /// Creates an empty list of weights. `format` is called for the format of every packed weight.
    pub fn new(
        device: B::Device,
        format: impl Fn(&WeightSpec) -> Result<Format, ModelError> + 'a,
    ) -> Self {
        Self {
            device,
            format: Box::new(format),
            has_tail: Box::new(|_| false),
            has_weight: Box::new(|_, _| true),
            selection: Selection::default(),
            specs: RefCell::default(),
            dimensions: RefCell::default(),
        }
    }

    /// Stores the last source of stacked linear layers in a format of its own if `has_tail` returns
    /// `true` for the name that this weight has then, such as `text.layers.0.qkv.tail.weight`.
    pub fn with_tails(self, has_tail: impl Fn(&str) -> bool + 'a) -> Self {
        Self {
            has_tail: Box::new(has_tail),
            ..self
        }
    }

    /// Leaves out optional modules without weights. `has_weight` is called with the names of a weight
    /// in the record and of its tensor in the checkpoint. By default, all optional modules are there.
    pub fn with_optional(self, has_weight: impl Fn(&str, &str) -> bool + 'a) -> Self {
        Self {
            has_weight: Box::new(has_weight),
            ..self
        }
    }

    /// Selects a part of the checkpoint. The model is built from the configuration after pruning.
    pub fn with_selection(self, selection: Selection) -> Self {
        Self { selection, ..self }
    }

    /// Returns the root scope of the record's and the checkpoint's names.
    pub fn root(&self, part: Part) -> Scope<'_, 'a, B> {
        Scope {
            weights: self,
            name: String::new(),
            source: String::new(),
            part,
        }
    }

    /// Returns the dimensions that a [`Selection`] can name, with their sizes in the configuration.
    pub fn dimensions(&self) -> BTreeMap<String, usize> {
        self.dimensions.borrow().clone()
    }

    /// Checks that the model has every dimension of the selection.
    ///
    /// # Errors
    /// If it lacks one.
    pub fn check_selection(&self) -> Result<(), ModelError> {
        let known = self.dimensions.borrow();
        let mut selected = self.selection.dimensions();
        match selected.find(|name| !known.contains_key(*name)) {
            Some(unknown) => Err(ModelError::config(format!(
                "the model has no dimension {unknown:?} to prune; it has {}",
                some_names(&known)
            ))),
            None => Ok(()),
        }
    }

    /// Returns the declared weights, in order.
    pub fn into_specs(self) -> Vec<WeightSpec> {
        self.specs.into_inner()
    }
}

/// Lists the first few names for an error message.
fn some_names(dimensions: &BTreeMap<String, usize>) -> String {
    let names: Vec<&str> = dimensions.keys().map(String::as_str).take(6).collect();
    match dimensions.len() - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
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

impl<B: KernelBackend> Scope<'_, '_, B> {
    /// Returns the scope of a child module; an empty `source` keeps the checkpoint's prefix.
    pub fn child(&self, name: &str, source: &str) -> Self {
        Self {
            name: join(&self.name, name),
            source: join(&self.source, source),
            ..self.clone()
        }
    }

    /// Returns the same scope for weights of another part.
    pub fn part(&self, part: Part) -> Self {
        Self {
            part,
            ..self.clone()
        }
    }

    /// Returns `true` if an optional module has a weight, which is named `name` in the record and made
    /// of the tensor `source` of the checkpoint.
    pub fn has(&self, name: &str, source: &str) -> bool {
        (self.weights.has_weight)(&join(&self.name, name), &join(&self.source, source))
    }

    /// Declares a dimension of `count` rows or columns that can be pruned; its full name is the path
    /// of this module followed by `name`.
    ///
    /// # Errors
    /// If the selection keeps another number of them.
    pub fn dimension(&self, name: &str, count: usize) -> Result<Extent, ModelError> {
        self.dimension_of(name, count, 1)
    }

    /// Works as [`Self::dimension`], for `count` units of `size` rows or columns each, such as
    /// heads.
    ///
    /// # Errors
    /// As [`Self::dimension`].
    pub fn dimension_of(
        &self,
        name: &str,
        count: usize,
        size: usize,
    ) -> Result<Extent, ModelError> {
        let name = join(&self.name, name);
        let extent = self.weights.selection.extent(&name, count, size)?;
        self.weights.dimensions.borrow_mut().insert(name, count);
        Ok(extent)
    }

    /// Returns the scopes of `count` equal modules, `name.0` and so on, and declares them as dimension
    /// `name`; `source` returns the checkpoint's name of the layer with a number.
    ///
    /// # Errors
    /// As [`Self::dimension`].
    pub fn layers(
        &self,
        name: &str,
        count: usize,
        source: impl Fn(usize) -> String,
    ) -> Result<Vec<Self>, ModelError> {
        let kept = self.dimension(name, count)?;
        let layer = |i| self.child(&format!("{name}.{i}"), &source(kept.source_index(i)));
        Ok((0..count).map(layer).collect())
    }

    /// Describes inputs that are the outputs of the norm `module`, of `width` elements. All layers
    /// that use these outputs must be declared with these inputs.
    pub fn normed(&self, module: &str, width: usize) -> Inputs {
        self.produced(module, 0, width)
    }

    /// Describes inputs that are elementwise linear in the outputs of the layer `module` from row
    /// `first` on. All layers that use these outputs must be declared with these inputs.
    pub fn produced(&self, module: &str, first: usize, columns: impl Into<Extent>) -> Inputs {
        let columns = columns.into();
        let unit = columns.len();
        self.repeated(module, first, columns, unit, 1)
    }

    /// Works as [`Self::produced`], where every `unit` outputs are repeated `repeats` times in the
    /// inputs.
    pub fn repeated(
        &self,
        module: &str,
        first: usize,
        columns: impl Into<Extent>,
        unit: usize,
        repeats: usize,
    ) -> Inputs {
        Inputs {
            columns: columns.into(),
            folds_into: Some(Fold {
                module: join(&self.name, module),
                first,
                unit,
                repeats,
            }),
        }
    }

    /// Describes the inputs of the second layer of an MLP: the outputs of the layer `module` after an
    /// activation. Only ReLU commutes with a positive scale.
    pub fn activated(
        &self,
        module: &str,
        activation: Activation,
        columns: impl Into<Extent>,
    ) -> Inputs {
        match activation {
            Activation::Relu => self.produced(module, 0, columns),
            _ => Inputs::from(columns),
        }
    }

    /// Describes a weight of this module that takes no part in products.
    fn spec<E: Into<Extent> + Clone>(
        &self,
        name: &str,
        storage: Storage,
        sources: &[(&str, E)],
        columns: Extent,
    ) -> WeightSpec {
        let source = |(tensor, rows): &(&str, E)| RowSource {
            tensor: join(&self.source, tensor),
            rows: rows.clone().into(),
        };
        WeightSpec {
            name: join(&self.name, name),
            part: self.part,
            storage,
            sources: sources.iter().map(source).collect(),
            columns,
            zero_centered: false,
            transposed: false,
            product: false,
            folds_into: None,
        }
    }

    fn declare(&self, spec: WeightSpec) {
        self.weights.specs.borrow_mut().push(spec);
    }

    /// Declares a packed matrix.
    fn packed(&self, spec: WeightSpec) -> Result<PackedParam<B>, ModelError> {
        let format = (self.weights.format)(&spec)?;
        let shape = MatrixShape {
            format,
            rows: spec.rows(),
            cols: spec.cols(),
        };
        let bytes = shape.byte_len().ok_or_else(|| {
            ModelError::config(format!(
                "{}: a matrix of {} x {} does not fit into memory",
                spec.name, shape.rows, shape.cols
            ))
        })?;
        let name = spec.name.clone();
        self.declare(spec);
        let param = Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([bytes], (device, DType::U8)),
            self.weights.device.clone(),
            false,
            Shape::new([bytes]),
        );
        Ok((name, param, shape))
    }

    /// Declares a dense f32 vector.
    pub fn vector<E: Into<Extent> + Clone>(
        &self,
        name: &str,
        sources: &[(&str, E)],
    ) -> Param<Tensor<B, 1>> {
        self.dense_vector(self.vector_spec(name, sources))
    }

    fn vector_spec<E: Into<Extent> + Clone>(
        &self,
        name: &str,
        sources: &[(&str, E)],
    ) -> WeightSpec {
        self.spec(name, Storage::Dense { cols: None }, sources, 1.into())
    }

    fn dense_vector(&self, spec: WeightSpec) -> Param<Tensor<B, 1>> {
        let len = spec.rows();
        self.declare(spec);
        Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([len], device),
            self.weights.device.clone(),
            false,
            Shape::new([len]),
        )
    }

    /// Declares a dense f32 matrix.
    pub fn matrix(
        &self,
        name: &str,
        source: &str,
        rows: usize,
        columns: impl Into<Extent>,
    ) -> Param<Tensor<B, 2>> {
        let columns = columns.into();
        let cols = columns.len();
        let storage = Storage::Dense { cols: Some(cols) };
        self.declare(self.spec(name, storage, &[(source, rows)], columns));
        Param::uninitialized(
            ParamId::new(),
            move |device: &B::Device, _| Tensor::zeros([rows, cols], device),
            self.weights.device.clone(),
            false,
            Shape::new([rows, cols]),
        )
    }

    /// Declares a linear layer of the stacked modules `sources` (`(checkpoint module, outputs)`),
    /// each with a `weight` and optionally a `bias`. The weight of the last of several modules may be
    /// stored by itself ([`Weights::with_tails`]).
    ///
    /// # Errors
    /// If the record does not say how it is stored, or its size overflows.
    pub fn linear<E: Into<Extent> + Clone>(
        &self,
        name: &str,
        sources: &[(&str, E)],
        inputs: impl Into<Inputs>,
        bias: bool,
    ) -> Result<Linear<B>, ModelError> {
        let scope = self.child(name, "");
        let Inputs {
            columns,
            folds_into,
        } = inputs.into();
        let names = |field: &str| -> Vec<(String, E)> {
            let named = |(module, rows): &(&str, E)| (join(module, field), rows.clone());
            sources.iter().map(named).collect()
        };
        let storage = Storage::Packed {
            cols: columns.len(),
        };
        let declare = |scope: &Self, sources: &[(String, E)]| {
            scope.packed(WeightSpec {
                product: true,
                folds_into: folds_into.clone(),
                ..scope.spec("weight", storage, &borrowed(sources), columns.clone())
            })
        };
        let all = names("weight");
        let tail = scope.child("tail", "");
        let has_tail = all.len() > 1 && (self.weights.has_tail)(&join(&tail.name, "weight"));
        let (first, last) = all.split_at(all.len() - usize::from(has_tail));
        let weight = declare(&scope, first)?;
        let tail = has_tail.then(|| declare(&tail, last)).transpose()?;
        let bias = bias.then(|| scope.vector("bias", &borrowed(&names("bias"))));
        let linear = Linear::new(weight, bias);
        Ok(match tail {
            Some(tail) => linear.with_tail(tail),
            None => linear,
        })
    }

    /// Declares a linear layer without bias whose weight is the tensor `source` of the checkpoint,
    /// transposed.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn transposed_linear(
        &self,
        name: &str,
        source: &str,
        outputs: impl Into<Extent>,
        inputs: impl Into<Inputs>,
    ) -> Result<Linear<B>, ModelError> {
        let Inputs {
            columns,
            folds_into,
        } = inputs.into();
        let storage = Storage::Packed {
            cols: columns.len(),
        };
        let name = join(name, "weight");
        let weight = self.packed(WeightSpec {
            product: true,
            transposed: true,
            folds_into,
            ..self.spec(&name, storage, &[(source, outputs.into())], columns)
        })?;
        Ok(Linear::new(weight, None))
    }

    /// Declares a table of embeddings, one row per token. `is_head` is `true` if it is also the
    /// output head.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn embedding(
        &self,
        name: &str,
        source: &str,
        tokens: &Extent,
        cols: usize,
        is_head: bool,
    ) -> Result<Embedding<B>, ModelError> {
        let scope = self.child(name, source);
        let storage = Storage::Packed { cols };
        let weight = scope.packed(WeightSpec {
            product: is_head,
            ..scope.spec("weight", storage, &[("weight", tokens)], cols.into())
        })?;
        Ok(Embedding::new(weight))
    }

    /// Declares a root mean square norm.
    pub fn rms_norm(&self, name: &str, source: &str, width: usize, eps: f64) -> RmsNorm<B> {
        let scope = self.child(name, source);
        RmsNorm::new(scope.vector("gamma", &[("weight", width)]), eps)
    }

    /// Declares a root mean square norm whose scale the checkpoint stores less 1.
    pub fn zero_centered_rms_norm(
        &self,
        name: &str,
        source: &str,
        width: usize,
        eps: f64,
    ) -> RmsNorm<B> {
        let scope = self.child(name, source);
        let spec = WeightSpec {
            zero_centered: true,
            ..scope.vector_spec("gamma", &[("weight", width)])
        };
        RmsNorm::new(scope.dense_vector(spec), eps)
    }

    /// Declares a layer norm.
    pub fn layer_norm(&self, name: &str, source: &str, width: usize, eps: f64) -> LayerNorm<B> {
        let scope = self.child(name, source);
        LayerNorm::new(
            scope.vector("gamma", &[("weight", width)]),
            scope.vector("beta", &[("bias", width)]),
            eps,
        )
    }
}

fn borrowed<E: Clone>(sources: &[(String, E)]) -> Vec<(&str, E)> {
    sources
        .iter()
        .map(|(name, rows)| (name.as_str(), rows.clone()))
        .collect()
}
