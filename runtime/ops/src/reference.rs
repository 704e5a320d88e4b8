//! Reference implementation of [`KernelBackend`](crate::KernelBackend) with plain burn operations,
//! for any backend. Tests compare the kernels with it.

use burn::tensor::activation::{gelu, relu, sigmoid, silu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use edge_lmm_kernels::RowSums;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};

pub use crate::recurrent::{gated_delta_rule, short_conv};

/// Applies an activation function elementwise.
pub fn activate<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    activation: Activation,
) -> Tensor<B, D> {
    match activation {
        Activation::None => x,
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let inner = (x.clone() + x.clone().powi_scalar(3) * 0.044_715)
                * (2.0 / std::f64::consts::PI).sqrt();
            x * (inner.tanh() + 1.0) * 0.5
        }
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Silu => silu(x),
    }
}

/// Computes `activation(x Wᵀ + bias) + residual` with a dense weight `[rows, cols]`.
pub fn linear<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    activation: Activation,
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let mut out = x.matmul(weight.transpose());
    if let Some(bias) = bias {
        out = out + bias.unsqueeze();
    }
    out = activate(out, activation);
    match residual {
        Some(residual) => residual + out,
        None => out,
    }
}

/// Applies root mean square normalization to every row.
pub fn rms_norm<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, eps: f32) -> Tensor<B, 2> {
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    x / (mean_square + eps).sqrt() * gamma.unsqueeze()
}

/// Applies layer normalization to every row.
pub fn layer_norm<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    eps: f32,
) -> Tensor<B, 2> {
    let centered = x.clone() - x.mean_dim(1);
    let variance = centered.clone().powi_scalar(2).mean_dim(1);
    centered / (variance + eps).sqrt() * gamma.unsqueeze() + beta.unsqueeze()
}

/// Computes `activation(gate) * up` for rows `gate | up`.
pub fn gated<B: Backend>(gate_up: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    let width = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, width);
    activate(gate, activation) * gate_up.narrow(1, width, width)
}

/// Sums the heads of every row from column `column` on.
pub fn sum_heads<B: Backend>(
    x: Tensor<B, 2>,
    column: usize,
    heads: usize,
    head_dim: usize,
) -> Tensor<B, 2> {
    let [rows, _] = x.dims();
    let heads = x
        .narrow(1, column, heads * head_dim)
        .reshape([rows, heads, head_dim]);
    heads.sum_dim(1).reshape([rows, head_dim])
}

/// Computes weighted sums of rows.
pub fn sum_rows<B: Backend>(x: Tensor<B, 2>, sums: &RowSums) -> Tensor<B, 2> {
    let ([_, width], device) = (x.dims(), x.device());
    let indices = |of: fn((usize, u32, f32)) -> i64| {
        let indices: Vec<i64> = sums.terms().map(of).collect();
        let len = indices.len();
        Tensor::<B, 1, Int>::from_data(TensorData::new(indices, [len]), &device)
    };
    let weights: Vec<f32> = sums.terms().map(|(_, _, weight)| weight).collect();
    let terms = weights.len();
    let weights = Tensor::<B, 2>::from_data(TensorData::new(weights, [terms, 1]), &device);
    let products = x.select(0, indices(|(_, source, _)| i64::from(source))) * weights;
    Tensor::zeros([sums.len(), width], &device).select_assign(
        0,
        indices(|(sum, _, _)| sum as i64),
        products,
        IndexingUpdateOp::Add,
    )
}

/// Applies rotate-half rotary embeddings to `[tokens, heads * head_dim]`.
pub fn rope<B: Backend>(
    x: Tensor<B, 2>,
    heads: usize,
    head_dim: usize,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let [tokens, _] = x.dims();
    let half = cos.dims()[1];
    let x = x.reshape([tokens, heads, head_dim]);
    let (cos, sin) = (cos.unsqueeze_dim::<3>(1), sin.unsqueeze_dim::<3>(1));
    let first = x.clone().narrow(2, 0, half);
    let second = x.clone().narrow(2, half, half);
    let mut parts = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    if head_dim > 2 * half {
        parts.push(x.narrow(2, 2 * half, head_dim - 2 * half));
    }
    Tensor::cat(parts, 2).reshape([tokens, heads * head_dim])
}

/// Returns `true` if key `j` of `kv_len` is visible to query `i` of `q_len`.
fn visible(mask: &Mask<'_>, i: usize, j: usize, q_len: usize, kv_len: usize) -> bool {
    match mask {
        Mask::Full => true,
        Mask::Causal => j <= kv_len - q_len + i,
        Mask::Segments(ends) => ends
            .windows(2)
            .any(|w| (w[0]..w[1]).contains(&i) && (w[0]..w[1]).contains(&j)),
        Mask::Ranges(ranges) => ranges[i].contains(&j),
    }
}

/// Returns the matrices of all query heads, `[heads, len, head_dim]`, from rows of `count` heads.
/// With grouped queries, `heads / kv_heads` consecutive query heads share a key-value head.
pub(crate) fn split_heads<B: Backend>(x: Tensor<B, 2>, count: usize, heads: Heads) -> Tensor<B, 3> {
    // burn's reshape of swapped dimensions mixes the heads on GPUs if they have one dimension.
    let columns = |head: usize| {
        let start = head / (heads.heads / count) * heads.head_dim;
        x.clone().slice_dim(1, start..start + heads.head_dim)
    };
    Tensor::stack((0..heads.heads).map(columns).collect(), 0)
}

/// Computes softmax attention with the whole score matrix in memory.
pub fn attention<'a, B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    bias: Option<Tensor<B, 3>>,
    scale: f32,
) -> Tensor<B, 2> {
    let [q_len, _] = q.dims();
    probabilities(q, k, heads, mask.into(), bias, scale)
        .matmul(split_heads(v, heads.kv_heads, heads))
        .swap_dims(0, 1)
        .reshape([q_len, heads.heads * heads.head_dim])
}

/// Computes the attention probability that each key receives, with the whole score matrix in memory.
pub fn attention_received<'a, B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    scale: f32,
) -> Tensor<B, 1> {
    let ([q_len, _], [kv_len, _]) = (q.dims(), k.dims());
    let weighted = mask.into();
    let queries = |key: usize| {
        let sees = |&query: &usize| visible(&weighted.mask, query, key, q_len, kv_len);
        (0..q_len).filter(sees).count().max(1) as f32
    };
    let queries: Vec<f32> = (0..kv_len).map(queries).collect();
    let queries = Tensor::<B, 1>::from_data(TensorData::new(queries, [kv_len]), &q.device());
    let sums = probabilities(q, k, heads, weighted, None, scale)
        .sum_dim(0)
        .sum_dim(1)
        .reshape([kv_len]);
    sums / queries / heads.heads as f32
}

/// Returns the softmax of the scores, `[heads, q_len, kv_len]`.
fn probabilities<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    heads: Heads,
    weighted: WeightedMask<'_>,
    bias: Option<Tensor<B, 3>>,
    scale: f32,
) -> Tensor<B, 3> {
    let ([q_len, _], [kv_len, _]) = (q.dims(), k.dims());
    let device = q.device();
    let q = split_heads(q, heads.heads, heads);
    let k = split_heads(k, heads.kv_heads, heads);
    let mut scores = q.matmul(k.swap_dims(1, 2)) * scale;
    if let Some(bias) = bias {
        scores = scores + bias;
    }
    if let Some(log_weights) = weighted.log_weights(kv_len) {
        let log_weights = Tensor::<B, 1>::from_data(&log_weights[..], &device);
        scores = scores + log_weights.unsqueeze();
    }
    let hidden: Vec<f32> = (0..q_len)
        .flat_map(|i| (0..kv_len).map(move |j| (i, j)))
        .map(|(i, j)| {
            if visible(&weighted.mask, i, j, q_len, kv_len) {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
        .collect();
    let hidden = Tensor::<B, 2>::from_data(TensorData::new(hidden, [q_len, kv_len]), &device);
    softmax(scores + hidden.unsqueeze(), 2)
}

/// Computes the attention weights of one query for all keys, in the mean over the heads.
///
/// # Shapes
/// - q: `[1, heads * head_dim]`, k: `[kv_len, kv_heads * head_dim]`, result: `[1, kv_len]`
pub fn attention_row<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    heads: Heads,
    scale: f32,
) -> Tensor<B, 2> {
    let [kv_len, _] = k.dims();
    let (kv_heads, group) = (heads.kv_heads, heads.heads / heads.kv_heads);
    let q = q.reshape([kv_heads, group, heads.head_dim]);
    let k = k
        .reshape([kv_len, kv_heads, heads.head_dim])
        .swap_dims(0, 1);
    let scores = q.matmul(k.swap_dims(1, 2)) * scale;
    softmax(scores, 2)
        .reshape([heads.heads, kv_len])
        .mean_dim(0)
}
