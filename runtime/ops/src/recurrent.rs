//! Recurrent layers with plain burn operations, for any backend.

use burn::tensor::activation::{sigmoid, silu, softplus};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_kernels::DeltaHeads;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::Heads;
use edge_lmm_kernels::delta_rule::UNIT_EPS;

use crate::functional::Columns;
use crate::reference::{activate, rms_norm, split_heads};

/// Tokens that the delta rule processes at once.
const CHUNK: usize = 64;

/// Operands of the gated delta rule, see [`KernelBackend::gated_delta_rule`](crate::KernelBackend::gated_delta_rule).
#[derive(Clone)]
pub struct DeltaRule<B: Backend> {
    /// Numbers and sizes of heads.
    pub heads: DeltaHeads,
    /// Queries, keys and values: `[tokens, width]`.
    pub qkv: Tensor<B, 2>,
    /// Gates of the update, then of the decay, before their activations: `[tokens, 2 * value_heads]`.
    pub gates: Tensor<B, 2>,
    /// Logarithm of the decay's factor: `[value_heads]`.
    pub decay_log: Tensor<B, 1>,
    /// Added to the gate of the decay: `[value_heads]`.
    pub decay_bias: Tensor<B, 1>,
    /// Gates of the outputs before SiLU: `[tokens, value_width]`.
    pub output_gate: Columns<B>,
    /// Scale of the norm of the outputs: `[value_dim]`.
    pub gamma: Tensor<B, 1>,
    /// Epsilon of that norm.
    pub eps: f32,
}

impl<B: Backend> DeltaRule<B> {
    /// Returns the operands of the first `tokens` tokens.
    pub fn first(&self, tokens: usize) -> Self {
        let first = |tensor: &Tensor<B, 2>| tensor.clone().narrow(0, 0, tokens);
        Self {
            qkv: first(&self.qkv),
            gates: first(&self.gates),
            output_gate: Columns {
                tensor: first(&self.output_gate.tensor),
                column: self.output_gate.column,
            },
            decay_log: self.decay_log.clone(),
            decay_bias: self.decay_bias.clone(),
            gamma: self.gamma.clone(),
            ..*self
        }
    }
}

/// Computes a causal convolution over a few tokens, each channel on its own, and an activation. Returns
/// the outputs, and the inputs of the last `taps - 1` tokens.
///
/// # Shapes
/// - x and outputs: `[tokens, channels]`, kernel: `[channels, taps]`,
///   before and after: `[taps - 1, channels]`
pub fn short_conv<B: Backend>(
    x: Tensor<B, 2>,
    before: Tensor<B, 2>,
    kernel: Tensor<B, 2>,
    activation: Activation,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let ([tokens, _], [channels, taps]) = (x.dims(), kernel.dims());
    // burn does not cut out empty tensors.
    let all = match taps {
        1 => x,
        _ => Tensor::cat(vec![before.clone(), x], 0),
    };
    let tap = |i: usize| {
        let weights = kernel.clone().narrow(1, i, 1).reshape([1, channels]);
        all.clone().narrow(0, i, tokens) * weights
    };
    let sum = (1..taps).fold(tap(0), |sum, i| sum + tap(i));
    let after = match taps {
        1 => before,
        _ => all.narrow(0, tokens, taps - 1),
    };
    (activate(sum, activation), after)
}

/// Applies the gated delta rule to each token in turn, and returns the outputs and the state after the
/// last token. Up to 64 tokens are processed at once, as in section 3.3 of
/// [arXiv:2412.06464](https://arxiv.org/abs/2412.06464).
///
/// # Shapes
/// - outputs: `[tokens, value_width]`, states: [`DeltaHeads::state`]
pub fn gated_delta_rule<B: Backend>(
    rule: DeltaRule<B>,
    state: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let (heads, [tokens, _]) = (rule.heads, rule.qkv.dims());
    let DeltaHeads {
        value_heads: count,
        key_dim,
        value_dim,
        ..
    } = heads;
    let chunk = CHUNK.min(tokens.next_power_of_two());
    let padding = tokens.next_multiple_of(chunk) - tokens;
    let masks = Masks::new(chunk, &state.device());
    let all = Chunk::new(&rule, padding);
    let mut state = state.reshape([count, key_dim, value_dim]);
    let mut outs = Vec::new();
    for first in (0..tokens).step_by(chunk) {
        let (out, after) = all.narrow(first, chunk).apply(&masks, state);
        outs.push(out);
        state = after;
    }
    let out = Tensor::cat(outs, 1).narrow(1, 0, tokens);
    let of_head = |head: usize| {
        let out = out.clone().narrow(0, head, 1).reshape([tokens, value_dim]);
        rms_norm(out, rule.gamma.clone(), rule.eps)
    };
    let out = Tensor::cat((0..count).map(of_head).collect(), 1);
    let Columns { tensor, column } = rule.output_gate;
    let gate = tensor.narrow(1, column, heads.value_width());
    let [rows, columns] = heads.state();
    (out * silu(gate), state.reshape([rows, columns]))
}

/// Operands of some tokens, `[value_heads, tokens, ..]`.
struct Chunk<B: Backend> {
    /// Queries of length `1 / sqrt(key_dim)`.
    queries: Tensor<B, 3>,
    /// Keys of length 1.
    keys: Tensor<B, 3>,
    values: Tensor<B, 3>,
    /// Logarithms of the factors of the state.
    decays: Tensor<B, 3>,
    /// Factors of the update.
    rates: Tensor<B, 3>,
}

impl<B: Backend> Chunk<B> {
    /// Returns all tokens, and `padding` tokens that change nothing.
    fn new(rule: &DeltaRule<B>, padding: usize) -> Self {
        let heads = rule.heads;
        let (keys, count) = (heads.key_width(), heads.value_heads);
        let split = |x: &Tensor<B, 2>, column: usize, of: usize, head_dim: usize| {
            let part = x.clone().narrow(1, column, of * head_dim);
            let shape = Heads {
                heads: count,
                kv_heads: of,
                head_dim,
            };
            split_heads(part, of, shape)
        };
        let unit = |x: Tensor<B, 3>| {
            let squares = x.clone().powi_scalar(2).sum_dim(2);
            x / (squares + UNIT_EPS).sqrt()
        };
        let row = |x: &Tensor<B, 1>| x.clone().reshape([1, count]);
        let gate = |column: usize| rule.gates.clone().narrow(1, column, count);
        let decays =
            softplus(gate(count) + row(&rule.decay_bias), 1.0) * -row(&rule.decay_log).exp();
        let padded = |x: Tensor<B, 3>| match padding {
            0 => x,
            _ => {
                let [heads, _, width] = x.dims();
                let zeros = Tensor::zeros([heads, padding, width], &x.device());
                Tensor::cat(vec![x, zeros], 1)
            }
        };
        let dim = heads.key_dim;
        let queries = unit(split(&rule.qkv, 0, heads.key_heads, dim));
        let values = split(&rule.qkv, 2 * keys, count, heads.value_dim);
        Self {
            queries: padded(queries / (dim as f64).sqrt()),
            keys: padded(unit(split(&rule.qkv, keys, heads.key_heads, dim))),
            values: padded(values),
            decays: padded(split(&decays, 0, count, 1)),
            rates: padded(split(&sigmoid(gate(0)), 0, count, 1)),
        }
    }

    fn narrow(&self, first: usize, tokens: usize) -> Self {
        let part = |x: &Tensor<B, 3>| x.clone().narrow(1, first, tokens);
        Self {
            queries: part(&self.queries),
            keys: part(&self.keys),
            values: part(&self.values),
            decays: part(&self.decays),
            rates: part(&self.rates),
        }
    }

    /// Returns the outputs, `[value_heads, tokens, value_dim]`, and the state after the tokens.
    ///
    /// With `G` the products of the decays up to a token, `D[i, j] = G[i] / G[j]` for `j <= i` and `A` the
    /// part of `rates K Kᵀ D` below the diagonal, the updates of all tokens are
    /// `(I + A)⁻¹ rates (V - G K S)`.
    fn apply(self, masks: &Masks<B>, state: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let Self {
            queries,
            keys,
            values,
            decays,
            rates,
        } = self;
        let [_, tokens, _] = keys.dims();
        let sums = decays.cumsum(1);
        let grown = sums.clone().exp();
        // Clamped before it is masked: above the diagonal the exponent may be large.
        let ratios = (sums.clone() - sums.clone().swap_dims(1, 2))
            .clamp_max(0.0)
            .exp();
        let ratios = ratios * masks.lower.clone();
        let rated = keys.clone() * rates.clone();
        let below = rated.clone().matmul(keys.clone().swap_dims(1, 2)) * ratios.clone();
        let missing = values * rates - (rated * grown.clone()).matmul(state.clone());
        let updates = masks.inverse(below).matmul(missing);
        let scores = queries.clone().matmul(keys.clone().swap_dims(1, 2)) * ratios;
        let out = (queries * grown.clone()).matmul(state.clone()) + scores.matmul(updates.clone());
        let last = sums.clone().narrow(1, tokens - 1, 1);
        let left = keys * (last.clone() - sums).exp();
        let after = state * last.exp() + left.swap_dims(1, 2).matmul(updates);
        (out, after)
    }
}

/// Constant matrices for chunks of a power of two of tokens: `[1, tokens, tokens]`.
struct Masks<B: Backend> {
    /// 1 on the diagonal and below.
    lower: Tensor<B, 3>,
    identity: Tensor<B, 3>,
    /// For blocks of 1, 2, 4 and so on: 1 in the lower left block of every pair of them on the diagonal.
    blocks: Vec<Tensor<B, 3>>,
}

impl<B: Backend> Masks<B> {
    fn new(tokens: usize, device: &B::Device) -> Self {
        let mask = |is_one: &dyn Fn(usize, usize) -> bool| {
            let ones = (0..tokens * tokens).map(|i| is_one(i / tokens, i % tokens));
            let ones: Vec<f32> = ones.map(|one| f32::from(u8::from(one))).collect();
            Tensor::from_data(TensorData::new(ones, [1, tokens, tokens]), device)
        };
        let sizes = (0..tokens.ilog2()).map(|power| 1usize << power);
        let block = |size: usize| mask(&|i, j| i / size == j / size + 1 && i / size % 2 == 1);
        Self {
            lower: mask(&|i, j| j <= i),
            identity: mask(&|i, j| j == i),
            blocks: sizes.map(block).collect(),
        }
    }

    /// Returns the inverse of the identity plus the part of `x` below the diagonal.
    ///
    /// The inverse of two blocks on the diagonal, `P` and `Q`, with `R` below `P`, has `-Q⁻¹ R P⁻¹` in the
    /// place of `R`. Powers of `x`, whose sum is the inverse too, would become large and cancel.
    fn inverse(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [heads, _, _] = x.dims();
        let identity = self.identity.clone().repeat_dim(0, heads);
        self.blocks.iter().fold(identity, |inverse, block| {
            let below = x.clone() * block.clone();
            inverse.clone() - inverse.clone().matmul(below).matmul(inverse)
        })
    }
}
