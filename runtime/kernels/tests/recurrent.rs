//! Recurrent layers against double precision, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::{
    Activation, DeltaHeads, DeltaInput, Rows, ThreadPool, gated_delta_rule, short_conv,
};
use proptest::prelude::*;
use support::{Random, cases, isas, pool, threads};

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// Operands of the gated delta rule.
struct Case {
    heads: DeltaHeads,
    tokens: usize,
    qkv: Vec<f32>,
    gates: Vec<f32>,
    decay_log: Vec<f32>,
    decay_bias: Vec<f32>,
    /// With a column before the gates.
    output_gate: Vec<f32>,
    gamma: Vec<f32>,
    state: Vec<f32>,
}

const EPS: f32 = 1e-6;

impl Case {
    fn random(heads: DeltaHeads, tokens: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let [rows, columns] = heads.state();
        Self {
            heads,
            tokens,
            qkv: random.normals(tokens * heads.width()),
            gates: random.normals(tokens * 2 * heads.value_heads),
            decay_log: random.normals(heads.value_heads),
            decay_bias: random.normals(heads.value_heads),
            output_gate: random.normals(tokens * (heads.value_width() + 1)),
            gamma: random.normals(heads.value_dim),
            state: random.normals(rows * columns),
        }
    }

    fn input(&self, from: usize, to: usize) -> DeltaInput<'_> {
        let stride = self.heads.value_width() + 1;
        let gates = 2 * self.heads.value_heads;
        DeltaInput {
            qkv: &self.qkv[from * self.heads.width()..to * self.heads.width()],
            gates: &self.gates[from * gates..to * gates],
            decay_log: &self.decay_log,
            decay_bias: &self.decay_bias,
            output_gate: Rows {
                data: &self.output_gate[(from * stride + 1).min(self.output_gate.len())..],
                stride,
            },
            gamma: &self.gamma,
            eps: EPS,
        }
    }

    fn run(&self, pool: &ThreadPool) -> (Vec<f32>, Vec<f32>) {
        gated_delta_rule(pool, self.heads, self.input(0, self.tokens), &self.state)
    }

    /// The recurrence token by token in double precision.
    fn exact(&self) -> (Vec<f64>, Vec<f64>) {
        let DeltaHeads {
            key_heads,
            value_heads,
            key_dim,
            value_dim,
        } = self.heads;
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        let unit = |x: &[f32]| {
            let x = wide(x);
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.into_iter().map(|x| x / length).collect::<Vec<f64>>()
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut state = wide(&self.state);
        let mut out = vec![0.0; self.tokens * self.heads.value_width()];
        for token in 0..self.tokens {
            let row = &self.qkv[token * self.heads.width()..];
            let gates = wide(&self.gates[token * 2 * value_heads..][..2 * value_heads]);
            for head in 0..value_heads {
                let key_head = head / (value_heads / key_heads) * key_dim;
                let q = unit(&row[key_head..][..key_dim]);
                let k = unit(&row[key_heads * key_dim + key_head..][..key_dim]);
                let v = wide(&row[2 * key_heads * key_dim + head * value_dim..][..value_dim]);
                let rate = sigmoid(gates[head]);
                let a = gates[value_heads + head] + f64::from(self.decay_bias[head]);
                let decay = (-f64::from(self.decay_log[head]).exp() * a.exp().ln_1p()).exp();
                let s = &mut state[head * key_dim * value_dim..][..key_dim * value_dim];
                s.iter_mut().for_each(|s| *s *= decay);
                let mut o = vec![0.0; value_dim];
                for j in 0..value_dim {
                    let read: f64 = (0..key_dim).map(|i| s[i * value_dim + j] * k[i]).sum();
                    let update = rate * (v[j] - read);
                    (0..key_dim).for_each(|i| s[i * value_dim + j] += k[i] * update);
                    let found: f64 = (0..key_dim).map(|i| s[i * value_dim + j] * q[i]).sum();
                    o[j] = found / (key_dim as f64).sqrt();
                }
                let mean = o.iter().map(|o| o * o).sum::<f64>() / value_dim as f64;
                for (j, &value) in o.iter().enumerate() {
                    let place = head * value_dim + j;
                    let stride = self.heads.value_width() + 1;
                    let gate = f64::from(self.output_gate[token * stride + 1 + place]);
                    let normed = value / (mean + f64::from(EPS)).sqrt();
                    let silu = gate * sigmoid(gate);
                    out[token * self.heads.value_width() + place] =
                        normed * f64::from(self.gamma[j]) * silu;
                }
            }
        }
        (out, state)
    }
}

fn relative(found: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let square = |x: f64| x * x;
    let difference: f64 = found
        .iter()
        .zip(exact)
        .map(|(f, e)| square(f64::from(*f) - e))
        .sum();
    let norm: f64 = exact.iter().map(|e| e * e).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

fn heads() -> impl Strategy<Value = DeltaHeads> {
    (1usize..4, 1usize..4, 1usize..40, 1usize..40).prop_map(
        |(key_heads, group, key_dim, value_dim)| DeltaHeads {
            key_heads,
            value_heads: key_heads * group,
            key_dim,
            value_dim,
        },
    )
}

proptest! {
    #![proptest_config(cases(40))]

    /// A step rounds a sum of `key_dim` products, the update and the decay, which is up to `key_dim + 8`
    /// units; the state forgets or overwrites errors as it does values, so that those of the tokens add
    /// up at most. The norm divides by the length of the output, which may be shorter than the state.
    #[test]
    fn the_delta_rule_is_the_recurrence(heads in heads(), tokens in 0usize..60, seed: u64) {
        let case = Case::random(heads, tokens, seed);
        let (exact, exact_state) = case.exact();
        let bound = (heads.key_dim + 8) as f64 * UNIT * (tokens + 1) as f64;
        for isa in isas() {
            let (out, state) = case.run(&pool(isa));
            let error = relative(&state, &exact_state);
            prop_assert!(error <= bound, "{isa} state {error:e}, at most {bound:e}");
            let error = relative(&out, &exact);
            prop_assert!(error <= 20.0 * bound + 1e-6, "{isa} {error:e}, at most {bound:e}");
        }
    }

    /// Pieces of any length and any number of threads give the same bits.
    #[test]
    fn pieces_change_no_bit(heads in heads(), tokens in 1usize..40, cuts in prop::collection::vec(0usize..40, 0..5), seed: u64) {
        let case = Case::random(heads, tokens, seed);
        let mut bounds: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tokens)).collect();
        bounds.extend([0, tokens]);
        bounds.sort_unstable();
        for isa in isas() {
            let whole = case.run(&pool(isa));
            prop_assert_eq!(&case.run(&ThreadPool::with_isa(threads(5), isa)), &whole);
            let (mut out, mut state) = (Vec::new(), case.state.clone());
            for piece in bounds.windows(2) {
                let input = case.input(piece[0], piece[1]);
                let (more, after) = gated_delta_rule(&pool(isa), heads, input, &state);
                out.extend(more);
                state = after;
            }
            prop_assert_eq!(&(out, state), &whole, "{} {:?}", isa, bounds);
        }
    }

    #[test]
    fn convolutions(channels in 1usize..600, taps in 1usize..6, tokens in 1usize..20, cut in 0usize..20, seed: u64) {
        let mut random = Random(seed);
        let cut = cut.min(tokens);
        let before = random.normals((taps - 1) * channels);
        let kernel = random.normals(taps * channels);
        let x = random.normals(tokens * (channels + 3));
        let stride = channels + 3;
        let all: Vec<f32> = before.iter().copied().chain(x.chunks(stride).flat_map(|row| row[..channels].to_vec())).collect();
        for isa in isas() {
            let run = |from: usize, to: usize| {
                let data = &x[(from * stride).min(x.len())..];
                let before = &all[from * channels..][..(taps - 1) * channels];
                short_conv(&pool(isa), Rows { data, stride }, to - from, before, &kernel, channels, Activation::Silu)
            };
            let found = run(0, tokens);
            let exact: Vec<f64> = (0..tokens * channels).map(|i| {
                let (token, channel) = (i / channels, i % channels);
                let tap = |tap: usize| f64::from(all[(token + tap) * channels + channel]) * f64::from(kernel[channel * taps + tap]);
                let sum: f64 = (0..taps).map(tap).sum();
                sum / (1.0 + (-sum).exp())
            }).collect();
            let error = relative(&found, &exact);
            // Roundings of the taps, and the documented error of SiLU.
            prop_assert!(error <= 5e-7 + taps as f64 * UNIT * 4.0, "{isa} {error:e}");
            let mut pieces = run(0, cut);
            pieces.extend(run(cut, tokens));
            prop_assert_eq!(pieces, found);
        }
    }
}

/// Softplus and sigmoid do not overflow: a gate closes or opens completely.
#[test]
fn gates_of_extreme_values() {
    let heads = DeltaHeads {
        key_heads: 1,
        value_heads: 1,
        key_dim: 4,
        value_dim: 4,
    };
    for (gates, kept, updated) in [
        ([-1e4, -1e4], true, false),
        ([-1e4, 1e4], false, false),
        ([1e4, 1e4], false, true),
    ] {
        let mut case = Case::random(heads, 1, 1);
        case.gates = gates.to_vec();
        for isa in isas() {
            let (_, state) = case.run(&pool(isa));
            assert_eq!(state == case.state, kept, "{isa} {gates:?}");
            let is_zero = state.iter().all(|&x| x == 0.0);
            assert_eq!(is_zero, !kept && !updated, "{isa} {gates:?}: {state:?}");
        }
    }
}

/// Prints the time of a token with the heads of Qwen3.5-0.8B: `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time() {
    let heads = DeltaHeads {
        key_heads: 16,
        value_heads: 16,
        key_dim: 128,
        value_dim: 128,
    };
    for tokens in [1, 64] {
        let case = Case::random(heads, tokens, 1);
        for isa in isas() {
            let pool = ThreadPool::with_isa(threads(1), isa);
            let kernel = vec![0.5; 4 * heads.width()];
            let before = vec![0.5; 3 * heads.width()];
            let best = |f: &dyn Fn()| {
                let time = |_| {
                    let start = std::time::Instant::now();
                    f();
                    start.elapsed().as_secs_f64() * 1e6
                };
                (0..20).map(time).fold(f64::INFINITY, f64::min) / tokens as f64
            };
            let rule = best(&|| drop(case.run(&pool)));
            let x = Rows {
                data: &case.qkv,
                stride: heads.width(),
            };
            let conv = best(&|| {
                drop(short_conv(
                    &pool,
                    x,
                    tokens,
                    &before,
                    &kernel,
                    heads.width(),
                    Activation::Silu,
                ))
            });
            println!("{isa} {tokens} tokens: {rule:.1} us a token, convolution {conv:.1} us");
        }
    }
}
