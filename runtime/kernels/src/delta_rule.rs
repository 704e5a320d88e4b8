//! The gated delta rule: attention whose state is a matrix per head instead of all keys and values
//! (Yang et al. 2024, [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)).

use crate::activation::Activation;
use crate::attention::Rows;
use crate::cpu::{DeltaSteps, Strided};
use crate::pool::{GRAIN, ThreadPool};
use crate::scratch::{self, Parts, fresh, zeroed};
use std::mem::MaybeUninit;

/// Columns of a state that a task updates for all tokens: those of a state with keys of 128 elements
/// are 8 KiB, which stay in the L1 cache.
pub const COLUMNS: usize = 16;

/// Added to the sum of squares of a query or key before it is normalized.
pub const UNIT_EPS: f32 = 1e-6;

/// Heads of the gated delta rule. Each key head belongs to `value_heads / key_heads` consecutive value
/// heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, each with a state.
    pub value_heads: usize,
    /// Elements of a query or key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Returns the elements of all queries, or of all keys, of a token.
    pub fn key_width(self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Returns the elements of all values of a token.
    pub fn value_width(self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Returns the elements of queries, keys and values of a token.
    pub fn width(self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Returns rows and columns of the states of all heads: `[value_heads * key_dim, value_dim]`.
    pub fn state(self) -> [usize; 2] {
        [self.value_heads * self.key_dim, self.value_dim]
    }
}

/// Operands of [`gated_delta_rule`].
#[derive(Clone, Copy, Debug)]
pub struct DeltaInput<'a> {
    /// Queries, keys and values: `[tokens, width]`.
    pub qkv: &'a [f32],
    /// Gates of the update, then of the decay, before their activations: `[tokens, 2 * value_heads]`.
    pub gates: &'a [f32],
    /// Logarithm of the decay's factor: `[value_heads]`.
    pub decay_log: &'a [f32],
    /// Added to the gate of the decay: `[value_heads]`.
    pub decay_bias: &'a [f32],
    /// Gates of the outputs before SiLU: `[tokens, value_width]`.
    pub output_gate: Rows<'a>,
    /// Scale of the norm of the outputs: `[value_dim]`.
    pub gamma: &'a [f32],
    /// Epsilon of that norm.
    pub eps: f32,
}

/// Applies the gated delta rule to each token in turn and returns the outputs, `[tokens, value_width]`, and
/// the state after the last token.
///
/// For a head with state `S`, query `q` and key `k` of unit length, value `v` and gates `b` and `a`:
/// `S = S * exp(-exp(decay_log) * softplus(a + decay_bias))`,
/// `S = S + k (sigmoid(b) (v - Sᵀ k))ᵀ`, `o = Sᵀ q / sqrt(key_dim)`. The output is the root mean square
/// norm of `o` times the SiLU of its gate. The result is bitwise the same if the tokens are divided into
/// several calls.
///
/// # Shapes
/// `state` and the result: [`DeltaHeads::state`]
///
/// # Panics
/// If the lengths do not fit together.
pub fn gated_delta_rule(
    pool: &ThreadPool,
    heads: DeltaHeads,
    input: DeltaInput<'_>,
    state: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let tokens = check(heads, input, state);
    if tokens == 0 {
        return (Vec::new(), state.to_vec());
    }
    let units = unit_keys(pool, heads, input.qkv, tokens);
    let gates = Gates::new(heads, input, tokens);
    let mut out = vec![0.0; tokens * heads.value_width()];
    let outs = Parts::new(&mut out);
    let tiles_of_head = heads.value_dim.div_ceil(COLUMNS);
    let grain = GRAIN / (COLUMNS * heads.key_dim * tokens).max(1);
    // SAFETY: the tiles are disjoint and cover all columns of all heads, each of which is written.
    #[allow(unsafe_code)]
    let after = unsafe {
        fresh(state.len(), |afters| {
            pool.run_ranges(heads.value_heads * tiles_of_head, grain, |tiles| {
                for tile in tiles {
                    let tile = Tile {
                        head: tile / tiles_of_head,
                        first: tile % tiles_of_head * COLUMNS,
                    };
                    let input = (input.qkv, &units[..], &gates);
                    tile.run(pool, heads, input, state, (&outs, afters));
                }
            });
        })
    };
    gate_outputs(pool, heads, input, &mut out);
    (out, after)
}

/// Returns the number of tokens.
fn check(heads: DeltaHeads, input: DeltaInput<'_>, state: &[f32]) -> usize {
    let DeltaHeads {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
    } = heads;
    assert!(
        key_heads > 0 && key_dim > 0 && value_dim > 0 && value_heads.is_multiple_of(key_heads),
        "{heads:?}"
    );
    let tokens = input.qkv.len() / heads.width();
    assert_eq!(
        input.qkv.len(),
        tokens * heads.width(),
        "queries, keys, values"
    );
    assert_eq!(input.gates.len(), tokens * 2 * value_heads, "gates");
    assert!(
        input.decay_log.len() == value_heads && input.decay_bias.len() == value_heads,
        "parameters of the decay"
    );
    assert_eq!(input.gamma.len(), value_dim, "scale of the norm");
    assert_eq!(state.len(), value_heads * key_dim * value_dim, "state");
    tokens
}

/// Returns queries and keys of unit length, the queries divided by `sqrt(key_dim)`: `[tokens, 2 * key_width]`.
fn unit_keys(pool: &ThreadPool, heads: DeltaHeads, qkv: &[f32], tokens: usize) -> Vec<f32> {
    let (dim, width) = (heads.key_dim, 2 * heads.key_width());
    let size = dim as f32;
    // The root mean square norm divides by a length that is shorter by the root of `dim`.
    let scales = [vec![1.0 / size; dim], vec![1.0 / size.sqrt(); dim]];
    let mut units = vec![0.0; tokens * width];
    let parts = Parts::new(&mut units);
    pool.run_ranges(tokens, GRAIN.div_ceil(width), |range| {
        for token in range {
            // SAFETY: each token belongs to one task.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(token * width..(token + 1) * width) };
            let x = &qkv[token * heads.width()..][..width];
            let rows = x.chunks_exact(dim).zip(out.chunks_exact_mut(dim));
            for (i, (x, out)) in rows.enumerate() {
                let scale = &scales[i / heads.key_heads];
                pool.kernels().rms_norm(x, scale, UNIT_EPS / size, out);
            }
        }
    });
    units
}

/// Factors of the state and of the update: `[value_heads, tokens]`.
struct Gates {
    decays: Vec<f32>,
    rates: Vec<f32>,
}

impl Gates {
    fn new(heads: DeltaHeads, input: DeltaInput<'_>, tokens: usize) -> Self {
        let count = heads.value_heads;
        let of_heads = |factor: &dyn Fn(usize, &[f32]) -> f32| {
            let rows = |head| {
                let rows = input.gates.chunks_exact(2 * count);
                rows.map(move |row| factor(head, row))
            };
            let mut all = Vec::with_capacity(count * tokens);
            (0..count).for_each(|head| all.extend(rows(head)));
            all
        };
        Self {
            decays: of_heads(&|head, row| {
                let rate = softplus(row[count + head] + input.decay_bias[head]);
                (-input.decay_log[head].exp() * rate).exp()
            }),
            rates: of_heads(&|head, row| 1.0 / (1.0 + (-row[head]).exp())),
        }
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Some columns of the state of a head.
struct Tile {
    head: usize,
    first: usize,
}

impl Tile {
    fn run(
        &self,
        pool: &ThreadPool,
        heads: DeltaHeads,
        (qkv, units, gates): (&[f32], &[f32], &Gates),
        before: &[f32],
        (outs, afters): (&Parts<'_, f32>, &Parts<'_, MaybeUninit<f32>>),
    ) {
        let (dim, value_dim) = (heads.key_dim, heads.value_dim);
        let columns = COLUMNS.min(value_dim - self.first);
        let tokens = qkv.len() / heads.width();
        let key = self.head / (heads.value_heads / heads.key_heads) * dim;
        let value = self.head * value_dim + self.first;
        let strided = |data, stride| Strided { data, stride };
        let of_head = self.head * tokens..(self.head + 1) * tokens;
        let steps = DeltaSteps {
            keys: strided(&units[heads.key_width() + key..], 2 * heads.key_width()),
            queries: strided(&units[key..], 2 * heads.key_width()),
            values: strided(&qkv[2 * heads.key_width() + value..], heads.width()),
            columns,
            decays: &gates.decays[of_head.clone()],
            rates: &gates.rates[of_head],
        };
        let place = |row: usize| (self.head * dim + row) * value_dim + self.first;
        scratch::with((dim + tokens) * COLUMNS, |buffer| {
            let (state, out) = buffer.split_at_mut(dim * COLUMNS);
            for (i, row) in state.chunks_exact_mut(COLUMNS).enumerate() {
                row[..columns].copy_from_slice(&before[place(i)..][..columns]);
                row[columns..].fill(0.0);
            }
            pool.kernels().delta_rule(steps, state, out);
            for (i, row) in state.chunks_exact(COLUMNS).enumerate() {
                // SAFETY: each tile has its own columns.
                #[allow(unsafe_code)]
                let after = unsafe { afters.part(place(i)..place(i) + columns) };
                zeroed(after).copy_from_slice(&row[..columns]);
            }
            for (token, row) in out.chunks_exact(COLUMNS).enumerate() {
                let place = token * heads.value_width() + value;
                // SAFETY: as above.
                #[allow(unsafe_code)]
                let out = unsafe { outs.part(place..place + columns) };
                out.copy_from_slice(&row[..columns]);
            }
        });
    }
}

/// Normalizes the outputs of every head and multiplies them by the SiLU of their gates.
fn gate_outputs(pool: &ThreadPool, heads: DeltaHeads, input: DeltaInput<'_>, out: &mut [f32]) {
    let (dim, width) = (heads.value_dim, heads.value_width());
    let tokens = out.len() / width;
    let parts = Parts::new(out);
    pool.run_ranges(tokens, GRAIN.div_ceil(width), |range| {
        for token in range {
            // SAFETY: each token belongs to one task.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(token * width..(token + 1) * width) };
            let gate = &input.output_gate.data[token * input.output_gate.stride..][..width];
            scratch::with(dim, |normed| {
                for (out, gate) in out.chunks_exact_mut(dim).zip(gate.chunks_exact(dim)) {
                    let kernels = pool.kernels();
                    kernels.rms_norm(out, input.gamma, input.eps, normed);
                    kernels.gated(Activation::Silu, gate, normed, out);
                }
            });
        }
    });
}
