//! The operations of [`KernelBackend`] on typed tensors, for the models.

use std::ops::Range;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Int, Tensor, TensorPrimitive};
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};
use edge_lmm_kernels::format::MatrixShape;
use edge_lmm_kernels::{Format, RowSums};

use crate::backend::{DeltaOperands, KernelBackend, KvStore, Packed, Part};
use crate::recurrent::DeltaRule;
use crate::stage::{self, Work};
use crate::work::{self, Attention};

fn float<B: KernelBackend, const D: usize>(tensor: Tensor<B, D>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

fn tensor<B: KernelBackend>(primitive: B::FloatTensorPrimitive) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Columns of a tensor from `column` on, such as a part of a fused projection.
#[derive(Clone)]
pub struct Columns<B: Backend> {
    /// `[tokens, width]`
    pub tensor: Tensor<B, 2>,
    /// First column of the part.
    pub column: usize,
}

impl<B: Backend> From<Tensor<B, 2>> for Columns<B> {
    fn from(tensor: Tensor<B, 2>) -> Self {
        Self { tensor, column: 0 }
    }
}

/// See [`KernelBackend::packed_linear`].
pub fn linear<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1, Int>,
    shape: MatrixShape,
    bias: Option<Tensor<B, 1>>,
    activation: Activation,
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let [tokens, _] = x.dims();
    stage::count(|| work::linear(tokens, shape, bias.is_some(), residual.is_some()));
    let weight = weight.into_primitive();
    stage::weight(|| B::weight_memory(&weight));
    tensor(B::packed_linear(
        &float(x),
        &weight,
        shape,
        bias.map(float).as_ref(),
        activation,
        residual.map(float),
    ))
}

/// A packed matrix with its bias: see [`Packed`].
pub struct PackedLinear<B: KernelBackend> {
    /// The packed bytes.
    pub weight: Tensor<B, 1, Int>,
    /// Format and size of the matrix.
    pub shape: MatrixShape,
    /// `[shape.rows]`
    pub bias: Option<Tensor<B, 1>>,
}

/// See [`KernelBackend::feed_forward`].
pub fn feed_forward<B: KernelBackend>(
    x: Tensor<B, 2>,
    up: PackedLinear<B>,
    activation: Activation,
    gated: bool,
    down: PackedLinear<B>,
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let shapes = [up.shape, down.shape];
    let weights = [up.weight, down.weight].map(Tensor::into_primitive);
    let biases = [up.bias, down.bias].map(|bias| bias.map(float));
    let [tokens, _] = x.dims();
    let has_bias = || [biases[0].is_some(), biases[1].is_some()];
    stage::count(|| work::feed_forward(tokens, shapes, has_bias(), residual.is_some()));
    weights
        .iter()
        .for_each(|weight| stage::weight(|| B::weight_memory(weight)));
    let packed = |i: usize| Packed {
        weight: &weights[i],
        shape: shapes[i],
        bias: biases[i].as_ref(),
    };
    let residual = residual.map(float);
    tensor(B::feed_forward(
        &float(x),
        packed(0),
        activation,
        gated,
        packed(1),
        residual,
    ))
}

/// See [`KernelBackend::gated_linear`].
pub fn gated_linear<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1, Int>,
    shape: MatrixShape,
    activation: Activation,
) -> Tensor<B, 2> {
    let [tokens, _] = x.dims();
    stage::count(|| {
        let product = work::linear(tokens, shape, false, false);
        // Only half of the outputs are written.
        let written = (4 * tokens * (shape.rows - shape.rows / 2)) as u64;
        Work {
            bytes: product.bytes - written,
            ..product
        }
    });
    let weight = weight.into_primitive();
    stage::weight(|| B::weight_memory(&weight));
    tensor(B::gated_linear(&float(x), &weight, shape, activation))
}

/// See [`KernelBackend::gather_rows`].
pub fn gather_rows<B: KernelBackend>(
    weight: Tensor<B, 1, Int>,
    shape: MatrixShape,
    ids: &[u32],
) -> Tensor<B, 2> {
    stage::count(|| work::gather(shape, ids.len()));
    let device = weight.device();
    tensor(B::gather_rows(
        &weight.into_primitive(),
        shape,
        ids,
        &device,
    ))
}

/// See [`KernelBackend::select_rows`].
pub fn select_rows<B: KernelBackend>(table: Tensor<B, 2>, ids: &[u32]) -> Tensor<B, 2> {
    let [_, width] = table.dims();
    count_elements(ids.len(), width, width);
    let device = table.device();
    tensor(B::select_rows(&float(table), ids, &device))
}

/// See [`KernelBackend::sum_heads`].
pub fn sum_heads<B: KernelBackend>(
    x: impl Into<Columns<B>>,
    heads: usize,
    head_dim: usize,
) -> Tensor<B, 2> {
    let Columns { tensor: x, column } = x.into();
    count_elements(x.dims()[0], heads * head_dim, head_dim);
    let x = float(x);
    let part = Part { tensor: &x, column };
    tensor(B::sum_heads(part, heads, head_dim))
}

/// See [`KernelBackend::sum_rows`].
pub fn sum_rows<B: KernelBackend>(x: Tensor<B, 2>, sums: &RowSums) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    stage::count(|| work::elements(rows, rows * width, sums.len() * width));
    tensor(B::sum_rows(&float(x), sums))
}

/// See [`KernelBackend::argmax`].
///
/// # Errors
/// If the device reports an error of this or an earlier operation.
pub fn argmax<B: KernelBackend>(scores: Tensor<B, 2>) -> Result<Option<u32>, ExecutionError> {
    B::argmax(float(scores))
}

/// See [`KernelBackend::fused_rms_norm`].
pub fn rms_norm<B: KernelBackend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, eps: f32) -> Tensor<B, 2> {
    let _stage = stage::part("norm");
    let [tokens, width] = x.dims();
    stage::count(|| work::elements(tokens, (tokens + 1) * width, tokens * width));
    tensor(B::fused_rms_norm(&float(x), &float(gamma), eps))
}

/// See [`KernelBackend::fused_layer_norm`].
pub fn layer_norm<B: KernelBackend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    eps: f32,
) -> Tensor<B, 2> {
    let _stage = stage::part("norm");
    let [tokens, width] = x.dims();
    stage::count(|| work::elements(tokens, (tokens + 2) * width, tokens * width));
    tensor(B::fused_layer_norm(
        &float(x),
        &float(gamma),
        &float(beta),
        eps,
    ))
}

/// See [`KernelBackend::gated`].
pub fn gated<B: KernelBackend>(gate_up: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    count_elements(tokens, width, width / 2);
    tensor(B::gated(&float(gate_up), activation))
}

/// See [`KernelBackend::rope`].
pub fn rope<B: KernelBackend>(
    x: Tensor<B, 2>,
    column: usize,
    heads: usize,
    head_dim: usize,
    cos: &Tensor<B, 2>,
    sin: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    stage::count(|| rotation(heads, head_dim, cos.dims()));
    tensor(B::rope(
        float(x),
        column,
        heads,
        head_dim,
        &float(cos.clone()),
        &float(sin.clone()),
    ))
}

/// See [`KernelBackend::fused_attention`].
pub fn attention<'a, B: KernelBackend>(
    q: impl Into<Columns<B>>,
    k: impl Into<Columns<B>>,
    v: impl Into<Columns<B>>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    bias: Option<Tensor<B, 3>>,
    scale: f32,
) -> Tensor<B, 2> {
    let (mask, bias) = (mask.into(), bias.map(float));
    let (q, k) = (q.into(), k.into());
    let parts = attention_parts(&q, &k, heads, mask, Format::F32);
    with_parts(q, k, v.into(), |q, k, v| {
        stage::attention(parts, || {
            B::fused_attention(q, k, v, heads, mask, bias.as_ref(), scale)
        })
    })
}

/// Computes attention among the tokens of an encoder: [`KernelBackend::quantized_attention`] if its
/// weights are `quantized`, otherwise [`KernelBackend::fused_attention`].
pub fn encoder_attention<'a, B: KernelBackend>(
    q: impl Into<Columns<B>>,
    k: impl Into<Columns<B>>,
    v: impl Into<Columns<B>>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    scale: f32,
    quantized: bool,
) -> Tensor<B, 2> {
    let mask = mask.into();
    let (q, k) = (q.into(), k.into());
    let format = if quantized { Format::Q8 } else { Format::F32 };
    let parts = attention_parts(&q, &k, heads, mask, format);
    with_parts(q, k, v.into(), |q, k, v| {
        stage::attention(parts, || match quantized {
            true => B::quantized_attention(q, k, v, heads, mask, scale),
            false => B::fused_attention(q, k, v, heads, mask, None, scale),
        })
    })
}

/// See [`KernelBackend::attention_received`].
pub fn attention_received<'a, B: KernelBackend>(
    q: impl Into<Columns<B>>,
    k: impl Into<Columns<B>>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    scale: f32,
) -> Tensor<B, 1> {
    let (q, k) = (q.into(), k.into());
    let mask = mask.into();
    let _stage = stage::part("received");
    stage::count(|| attention_parts(&q, &k, heads, mask, Format::F32)()[0]);
    let tensors = [q.tensor, k.tensor].map(float);
    let [q, k] = [(0, q.column), (1, k.column)].map(|(i, column)| Part {
        tensor: &tensors[i],
        column,
    });
    let received = B::attention_received(q, k, heads, mask, scale);
    Tensor::from_primitive(TensorPrimitive::Float(received))
}

fn with_parts<B: KernelBackend>(
    q: Columns<B>,
    k: Columns<B>,
    v: Columns<B>,
    attend: impl FnOnce(Part<'_, B>, Part<'_, B>, Part<'_, B>) -> B::FloatTensorPrimitive,
) -> Tensor<B, 2> {
    let columns = [q.column, k.column, v.column];
    let tensors = [q, k, v].map(|part| float(part.tensor));
    let part = |i: usize| Part {
        tensor: &tensors[i],
        column: columns[i],
    };
    tensor(attend(part(0), part(1), part(2)))
}

/// See [`KernelBackend::cached_attention`].
pub fn cached_attention<B: KernelBackend>(
    qkv: Tensor<B, 2>,
    heads: Heads,
    cache: &mut B::KvCache,
    layer: usize,
    mask: Mask<'_>,
    bias: Option<Tensor<B, 3>>,
    scale: f32,
) -> Tensor<B, 2> {
    let [tokens, _] = qkv.dims();
    let parts = cached_parts::<B>(heads, tokens, cache, layer, mask);
    let (qkv, bias) = (float(qkv), bias.map(float));
    tensor(stage::attention(parts, || {
        B::cached_attention(&qkv, heads, cache, layer, mask, bias.as_ref(), scale)
    }))
}

/// See [`KernelBackend::attention_row`].
pub fn attention_row<B: KernelBackend>(
    q: Tensor<B, 2>,
    heads: Heads,
    cache: &B::KvCache,
    layer: usize,
    keys: Range<usize>,
    scale: f32,
) -> Tensor<B, 2> {
    let _stage = stage::part("ranking");
    stage::count(|| {
        Attention {
            heads,
            q_len: 1,
            kv_len: keys.end,
            mask: Mask::Ranges(std::slice::from_ref(&keys)),
            position_bytes: position_bytes(cache),
            format: Format::F32,
        }
        .parts()[0]
    });
    tensor(B::attention_row(
        &float(q),
        heads,
        cache,
        layer,
        keys,
        scale,
    ))
}

/// See [`KernelBackend::rotated_attention`].
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn rotated_attention<B: KernelBackend>(
    qkv: Tensor<B, 2>,
    heads: Heads,
    cos: &Tensor<B, 2>,
    sin: &Tensor<B, 2>,
    cache: &mut B::KvCache,
    layer: usize,
    mask: Mask<'_>,
    scale: f32,
) -> Tensor<B, 2> {
    let [tokens, _] = qkv.dims();
    stage::count(|| rotation(heads.heads + heads.kv_heads, heads.head_dim, cos.dims()));
    let parts = cached_parts::<B>(heads, tokens, cache, layer, mask);
    let (qkv, cos, sin) = (float(qkv), float(cos.clone()), float(sin.clone()));
    tensor(stage::attention(parts, || {
        B::rotated_attention(qkv, heads, &cos, &sin, cache, layer, mask, scale)
    }))
}

/// See [`KernelBackend::short_conv`].
pub fn short_conv<B: KernelBackend>(
    x: impl Into<Columns<B>>,
    before: Tensor<B, 2>,
    kernel: Tensor<B, 2>,
    activation: Activation,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let Columns { tensor: x, column } = x.into();
    let [channels, _] = kernel.dims();
    let _stage = stage::part("short_conv");
    count_elements(x.dims()[0], channels, channels);
    let x = float(x);
    let part = Part { tensor: &x, column };
    let (out, after) = B::short_conv(part, &float(before), &float(kernel), activation);
    (tensor(out), tensor(after))
}

/// See [`KernelBackend::gated_delta_rule`].
pub fn gated_delta_rule<B: KernelBackend>(
    rule: DeltaRule<B>,
    state: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let [tokens, _] = rule.qkv.dims();
    let _stage = stage::part("delta_rule");
    stage::count(|| work::delta_rule(rule.heads, tokens));
    let output_gate = float(rule.output_gate.tensor);
    let operands = DeltaOperands {
        heads: rule.heads,
        qkv: &float(rule.qkv),
        gates: &float(rule.gates),
        decay_log: &float(rule.decay_log),
        decay_bias: &float(rule.decay_bias),
        output_gate: Part {
            tensor: &output_gate,
            column: rule.output_gate.column,
        },
        gamma: &float(rule.gamma),
        eps: rule.eps,
    };
    let (out, after) = B::gated_delta_rule(operands, &float(state));
    (tensor(out), tensor(after))
}

/// Counts an operation that reads and writes rows of some widths.
fn count_elements(rows: usize, read: usize, written: usize) {
    stage::count(|| work::elements(rows, rows * read, rows * written));
}

/// Counts a rotation with a table `[tokens, half]` of cosines and one of sines.
fn rotation(heads: usize, head_dim: usize, [tokens, half]: [usize; 2]) -> Work {
    let rotated = tokens * heads * head_dim.min(2 * half);
    work::elements(tokens, rotated + 2 * tokens * half, rotated)
}

/// Returns a function that counts attention among activations.
fn attention_parts<'a, B: KernelBackend>(
    q: &Columns<B>,
    k: &Columns<B>,
    heads: Heads,
    mask: WeightedMask<'a>,
    format: Format,
) -> impl FnOnce() -> [Work; 3] + use<'a, B> {
    let ([q_len, _], [kv_len, _]) = (q.tensor.dims(), k.tensor.dims());
    move || {
        Attention {
            heads,
            q_len,
            kv_len,
            mask: mask.mask,
            position_bytes: Attention::activations(heads),
            format,
        }
        .parts()
    }
}

/// Returns a function that counts attention of new tokens over a layer of the cache. It counts their
/// storage at once.
fn cached_parts<'a, B: KernelBackend>(
    heads: Heads,
    tokens: usize,
    cache: &B::KvCache,
    layer: usize,
    mask: Mask<'a>,
) -> impl FnOnce() -> [Work; 3] + use<'a, B> {
    let kv_len = cache.len_of(layer) + tokens;
    let position_bytes = position_bytes(cache);
    stage::count(|| work::append(heads, tokens, position_bytes));
    move || {
        Attention {
            heads,
            q_len: tokens,
            kv_len,
            mask,
            position_bytes,
            format: Format::F32,
        }
        .parts()
    }
}

/// Returns the bytes of keys and values of a position of a layer.
fn position_bytes(cache: &impl KvStore) -> usize {
    cache.bytes() / (cache.layers() * cache.capacity()).max(1)
}
