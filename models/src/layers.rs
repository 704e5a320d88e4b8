//! Layers that the families share, over packed weights.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use edge_lmm_ops::{
    Activation, KernelBackend, MatrixShape, PackedLinear, feed_forward, gated, gather_rows,
    layer_norm, linear, observe, rms_norm, stage,
};

use crate::error::ModelError;

/// A packed matrix with its name in the record.
pub type PackedParam<B> = (String, Param<Tensor<B, 1, Int>>, MatrixShape);

/// Returns the activation of that name; `field` names the field in the error.
///
/// # Errors
/// If no supported model uses it.
pub fn activation(field: &str, name: &str) -> Result<Activation, ModelError> {
    match name {
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(ModelError::config(format!(
            "{field} is {other:?}, expected relu, gelu, gelu_new, quick_gelu or silu"
        ))),
    }
}

/// `activation(x Wᵀ + b)` with a packed weight.
#[derive(Module, Debug)]
pub struct Linear<B: KernelBackend> {
    weight: Param<Tensor<B, 1, Int>>,
    bias: Option<Param<Tensor<B, 1>>>,
    tail: Option<Tail<B>>,
    #[module(skip)]
    shape: MatrixShape,
    #[module(skip)]
    name: String,
}

/// The last rows of a linear layer, if they have a format of their own.
#[derive(Module, Debug)]
struct Tail<B: KernelBackend> {
    weight: Param<Tensor<B, 1, Int>>,
    #[module(skip)]
    shape: MatrixShape,
    #[module(skip)]
    name: String,
}

impl<B: KernelBackend> Linear<B> {
    /// Creates a layer over the bytes of a packed matrix.
    pub fn new((name, weight, shape): PackedParam<B>, bias: Option<Param<Tensor<B, 1>>>) -> Self {
        Self {
            weight,
            bias,
            tail: None,
            shape,
            name,
        }
    }

    /// Appends the rows of another packed matrix, of which a bias that is there has the values.
    pub fn with_tail(self, (name, weight, shape): PackedParam<B>) -> Self {
        let tail = Tail {
            weight,
            shape,
            name,
        };
        Self {
            tail: Some(tail),
            ..self
        }
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> B::Device {
        self.weight.val().device()
    }

    /// Returns `true` if the weights are integers.
    pub fn is_quantized(&self) -> bool {
        let tail = self.tail.as_ref().map(|tail| tail.shape);
        let mut shapes = std::iter::once(self.shape).chain(tail);
        shapes.all(|shape| shape.format.is_quantized())
    }

    /// # Shapes
    /// - input: `[tokens, inputs]`, output: `[tokens, outputs]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.apply(x, Activation::None, None)
    }

    /// Computes [`Self::forward`], followed by an activation.
    pub fn forward_activated(&self, x: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
        self.apply(x, activation, None)
    }

    /// Computes [`Self::forward`] and adds it to `residual`, in place if that is not shared.
    pub fn forward_residual(&self, x: Tensor<B, 2>, residual: Tensor<B, 2>) -> Tensor<B, 2> {
        self.apply(x, Activation::None, Some(residual))
    }

    /// Computes a feed-forward that begins with this layer: `down(activation(self(x)))`, added to
    /// `residual`.
    ///
    /// # Shapes
    /// - x: `[tokens, inputs]`, residual and output: `[tokens, outputs of down]`
    pub fn feed_forward(
        &self,
        x: Tensor<B, 2>,
        activation: Activation,
        down: &Self,
        residual: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let (Some(up), Some(packed_down)) = (self.packed(), down.packed()) else {
            let hidden = self.apply(x, activation, None);
            return down.apply(hidden, Activation::None, residual);
        };
        let _stage = stage::part("feed_forward");
        feed_forward(x, up, activation, false, packed_down, residual)
    }

    /// Computes a gated feed-forward that begins with this layer, whose first half of outputs is
    /// the gate: `down(activation(gate(x)) * up(x))`, added to `residual`.
    ///
    /// # Shapes
    /// - as for [`Self::feed_forward`]
    pub fn gated_feed_forward(
        &self,
        x: Tensor<B, 2>,
        activation: Activation,
        down: &Self,
        residual: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let (Some(up), Some(packed_down)) = (self.packed(), down.packed()) else {
            let hidden = gated(self.forward(x), activation);
            return down.apply(hidden, Activation::None, residual);
        };
        let _stage = stage::part("feed_forward");
        feed_forward(x, up, activation, true, packed_down, residual)
    }

    /// Returns the layer for a product with others; `None` if it must be computed by itself.
    fn packed(&self) -> Option<PackedLinear<B>> {
        let whole = self.tail.is_none() && !observe::active();
        whole.then(|| PackedLinear {
            weight: self.weight.val(),
            shape: self.shape,
            bias: self.bias.as_ref().map(Param::val),
        })
    }

    fn apply(
        &self,
        x: Tensor<B, 2>,
        activation: Activation,
        residual: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let _stage = stage::part(part_of(&self.name));
        let bias = self.bias.as_ref().map(Param::val);
        let Some(tail) = &self.tail else {
            let (weight, shape) = supplied(&self.name, &x, &self.weight, self.shape);
            return linear(x, weight, shape, bias, activation, residual);
        };
        let rows = self.shape.rows;
        let part = |rows: Range<usize>| bias.clone().map(|bias| bias.slice_dim(0, rows));
        let (weight, shape) = supplied(&self.name, &x, &self.weight, self.shape);
        let first = linear(x.clone(), weight, shape, part(0..rows), activation, None);
        let (weight, shape) = supplied(&tail.name, &x, &tail.weight, tail.shape);
        let bias = part(rows..rows + shape.rows);
        let last = linear(x, weight, shape, bias, activation, None);
        let outputs = Tensor::cat(vec![first, last], 1);
        match residual {
            Some(residual) => residual + outputs,
            None => outputs,
        }
    }
}

/// Returns the matrix to multiply `x` with: the one that is supplied for the weight `name`, or `own`.
fn supplied<B: KernelBackend>(
    name: &str,
    x: &Tensor<B, 2>,
    own: &Param<Tensor<B, 1, Int>>,
    shape: MatrixShape,
) -> (Tensor<B, 1, Int>, MatrixShape) {
    observe::inputs(name, x).unwrap_or_else(|| (own.val(), shape))
}

/// Returns the name of a weight's layer within its module: `qkv` of `text.layers.3.qkv.weight`.
fn part_of(name: &str) -> &str {
    let layer = name.strip_suffix(".weight").unwrap_or(name);
    layer.rsplit('.').next().unwrap_or(layer)
}

/// A table of embeddings, packed like the linear layer that it may also be (tied heads).
#[derive(Module, Debug)]
pub struct Embedding<B: KernelBackend> {
    weight: Param<Tensor<B, 1, Int>>,
    #[module(skip)]
    shape: MatrixShape,
    #[module(skip)]
    name: String,
}

impl<B: KernelBackend> Embedding<B> {
    /// Creates a table over the bytes of a packed matrix.
    pub fn new((name, weight, shape): PackedParam<B>) -> Self {
        Self {
            weight,
            shape,
            name,
        }
    }

    /// Rows `ids`: `[ids.len(), width]`.
    ///
    /// # Panics
    /// If an id is not in the table.
    pub fn forward(&self, ids: &[u32]) -> Tensor<B, 2> {
        let _stage = stage::part(part_of(&self.name));
        if let Some((rows, shape)) = observe::rows(&self.name, ids, &self.weight.lazy_device()) {
            let all: Vec<u32> = (0..ids.len() as u32).collect();
            return gather_rows(rows, shape, &all);
        }
        gather_rows(self.weight.val(), self.shape, ids)
    }

    /// Multiplies with the table as the weight of a linear layer.
    pub fn as_linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let (weight, shape) = supplied(&self.name, &x, &self.weight, self.shape);
        linear(x, weight, shape, None, Activation::None, None)
    }
}

/// Root mean square norm (Zhang & Sennrich 2019).
#[derive(Module, Debug)]
pub struct RmsNorm<B: KernelBackend> {
    gamma: Param<Tensor<B, 1>>,
    #[module(skip)]
    eps: f64,
}

impl<B: KernelBackend> RmsNorm<B> {
    /// Creates a norm with the given scale.
    pub fn new(gamma: Param<Tensor<B, 1>>, eps: f64) -> Self {
        Self { gamma, eps }
    }

    /// Returns the scale and the epsilon, for an operation that contains the norm.
    pub fn parameters(&self) -> (Tensor<B, 1>, f32) {
        (self.gamma.val(), self.eps as f32)
    }

    /// Normalizes every row.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rms_norm(x, self.gamma.val(), self.eps as f32)
    }

    /// Normalizes every head of every row: `[tokens, heads * head_dim]`.
    pub fn forward_heads(&self, x: Tensor<B, 2>, head_dim: usize) -> Tensor<B, 2> {
        let [tokens, width] = x.dims();
        let heads = x.reshape([tokens * width / head_dim, head_dim]);
        self.forward(heads).reshape([tokens, width])
    }
}

/// Layer norm (Ba et al. 2016).
#[derive(Module, Debug)]
pub struct LayerNorm<B: KernelBackend> {
    gamma: Param<Tensor<B, 1>>,
    beta: Param<Tensor<B, 1>>,
    #[module(skip)]
    eps: f64,
}

impl<B: KernelBackend> LayerNorm<B> {
    /// Creates a norm with the given scale and shift.
    pub fn new(gamma: Param<Tensor<B, 1>>, beta: Param<Tensor<B, 1>>, eps: f64) -> Self {
        Self { gamma, beta, eps }
    }

    /// Normalizes every row.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        layer_norm(x, self.gamma.val(), self.beta.val(), self.eps as f32)
    }
}
