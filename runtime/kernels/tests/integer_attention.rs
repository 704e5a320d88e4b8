//! Attention in integers against a plain softmax in double precision, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::{Format, Heads, Rows, ThreadPool, integer_attention};
use proptest::prelude::*;
use support::{Random, isas, max_quant, pool, threads};

/// An attention problem. Queries, keys and values are columns of one matrix, as the output of a fused projection.
struct Problem {
    heads: Heads,
    ends: Vec<usize>,
    qkv: Vec<f32>,
    key_weights: Option<Vec<f32>>,
    scale: f32,
}

impl Problem {
    fn random(heads: Heads, ends: Vec<usize>, spread: f32, random: &mut Random) -> Self {
        let len = *ends.last().unwrap();
        let scale = spread / (heads.head_dim as f32).sqrt();
        let mut problem = Self {
            heads,
            ends,
            qkv: Vec::new(),
            key_weights: None,
            scale,
        };
        problem.qkv = random.normals(len * problem.stride());
        // Keys have a mean, as in real models.
        let (means, columns) = (random.normals(problem.stride()), problem.key_columns());
        for row in problem.qkv.chunks_mut(means.len()) {
            for i in columns.clone() {
                row[i] += 4.0 * means[i];
            }
        }
        problem
    }

    /// The same problem with weighted keys, from the weight of a tenth of a token to that of dozens.
    fn weighted(self, random: &mut Random) -> Self {
        let weights = random.normals(self.len());
        Self {
            key_weights: Some(weights.iter().map(|x| (1.5 * x).exp()).collect()),
            ..self
        }
    }

    fn len(&self) -> usize {
        *self.ends.last().unwrap()
    }

    fn width(&self) -> usize {
        self.heads.heads * self.heads.head_dim
    }

    fn kv_width(&self) -> usize {
        self.heads.kv_heads * self.heads.head_dim
    }

    fn stride(&self) -> usize {
        self.width() + 2 * self.kv_width() + 3
    }

    fn key_columns(&self) -> std::ops::Range<usize> {
        self.width()..self.width() + self.kv_width()
    }

    fn rows(&self, column: usize) -> Rows<'_> {
        Rows {
            data: &self.qkv[column..],
            stride: self.stride(),
        }
    }

    fn run(&self, pool: &ThreadPool) -> Vec<f32> {
        integer_attention(
            pool,
            self.heads,
            self.rows(0),
            self.rows(self.width()),
            self.rows(self.width() + self.kv_width()),
            self.len(),
            &self.ends,
            self.key_weights.as_deref(),
            self.scale,
        )
    }

    fn head(&self, column: usize, row: usize) -> Vec<f64> {
        let from = row * self.stride() + column;
        let head = &self.qkv[from..][..self.heads.head_dim];
        head.iter().map(|x| f64::from(*x)).collect()
    }

    fn log_weight(&self, key: usize) -> f64 {
        let weights = self.key_weights.as_ref();
        weights.map_or(0.0, |weights| f64::from(weights[key]).ln())
    }

    /// The mean square of (found - exact) / deviation over all results. The deviation is that of rounding: a number
    /// rounded with step `s` has an error with variance `s^2 / 12`. Queries, values and the attention weights of a
    /// chunk have `2 * limit` steps over their range.
    fn mean_square(&self, out: &[f32], limit: f64) -> f64 {
        let largest = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs()));
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let (dim, scale) = (self.heads.head_dim, f64::from(self.scale));
        let (mut sum, mut count) = (0.0, 0);
        for (segment, h) in self
            .ends
            .windows(2)
            .flat_map(|s| (0..self.heads.heads).map(move |h| (s[0]..s[1], h)))
        {
            let kv = h * self.heads.kv_heads / self.heads.heads * dim;
            let column = self.width() + kv;
            let mut keys: Vec<Vec<f64>> =
                segment.clone().map(|row| self.head(column, row)).collect();
            let values: Vec<Vec<f64>> = segment
                .clone()
                .map(|row| self.head(column + self.kv_width(), row))
                .collect();
            for d in 0..dim {
                let mean = keys.iter().map(|key| key[d]).sum::<f64>() / keys.len() as f64;
                keys.iter_mut().for_each(|key| key[d] -= mean);
            }
            for row in segment.clone() {
                let query = self.head(h * dim, row);
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| scale * key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>())
                    .zip(segment.clone())
                    .map(|(score, key)| score + self.log_weight(key))
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp() / total).collect();
                // Variance of a score from the rounding of query and key.
                let query_step = (largest(&query) / limit).powi(2) / 12.0;
                let variances: Vec<f64> = keys
                    .iter()
                    .map(|key| {
                        let key_step = (largest(key) / 127.0).powi(2) / 12.0;
                        scale * scale * (norm(key) * query_step + norm(&query) * key_step)
                    })
                    .collect();
                for d in 0..dim {
                    let exact: f64 = weights.iter().zip(&values).map(|(p, v)| p * v[d]).sum();
                    let mut variance = 1e-12;
                    for (c, chunk) in values.chunks(128).enumerate() {
                        let column: Vec<f64> = chunk.iter().map(|v| v[d]).collect();
                        let value_step = (largest(&column) / 127.0).powi(2) / 12.0;
                        let mean = column.iter().sum::<f64>() / column.len() as f64;
                        let weights = &weights[c * 128..][..column.len()];
                        let weight_step = (largest(weights) / (2.0 * limit)).powi(2) / 12.0;
                        for (i, v) in column.iter().enumerate() {
                            variance += weights[i] * weights[i] * value_step
                                + weight_step * (v - mean).powi(2)
                                + variances[c * 128 + i] * (weights[i] * (v - exact)).powi(2);
                        }
                    }
                    let found = f64::from(out[row * self.width() + h * dim + d]);
                    sum += (found - exact).powi(2) / variance;
                    count += 1;
                }
            }
        }
        sum / f64::from(count)
    }
}

fn check(heads: Heads, ends: Vec<usize>, spread: f32, weighted: bool, seed: u64) {
    let mut random = Random(seed);
    let mut problem = Problem::random(heads, ends, spread, &mut random);
    if weighted {
        problem = problem.weighted(&mut random);
    }
    for isa in isas() {
        let pool = pool(isa);
        let limit = f64::from(max_quant(&pool, Format::Q8));
        let mean_square = problem.mean_square(&problem.run(&pool), limit);
        // The expected value is 1. The error of a query affects its whole head, so there are only a few hundred
        // independent errors. Second-order effects of the errors of the scores increase with their spread.
        assert!(
            mean_square < 3.0,
            "{isa} {heads:?} {:?}: {mean_square} times the expected square of the error",
            problem.ends
        );
    }
}

proptest! {
    #![proptest_config(support::cases(12))]

    #[test]
    fn errors_are_those_of_rounding(
        kv_heads in 1usize..3,
        group in 1usize..3,
        head_dim in prop::sample::select(&[16usize, 30, 64, 72, 80, 88, 96, 128][..]),
        lengths in prop::collection::vec(20usize..300, 1..4),
        spread in 0.2f32..2.0,
        weighted: bool,
        seed: u64,
    ) {
        let mut ends = vec![0];
        for len in lengths {
            ends.push(ends.last().unwrap() + len);
        }
        check(Heads { heads: kv_heads * group, kv_heads, head_dim }, ends, spread, weighted, seed);
    }

    #[test]
    fn threads_do_not_change_a_bit(len in 1usize..400, weighted: bool, seed: u64) {
        let heads = Heads { heads: 3, kv_heads: 3, head_dim: 24 };
        let mut problem = Problem::random(heads, vec![0, len / 3, len], 1.0, &mut Random(seed));
        if weighted {
            problem = problem.weighted(&mut Random(seed));
        }
        for isa in isas() {
            let one = problem.run(&ThreadPool::with_isa(threads(1), isa));
            for n in 2..=4 {
                prop_assert_eq!(&problem.run(&ThreadPool::with_isa(threads(n), isa)), &one, "{} {} threads", isa, n);
            }
        }
    }
}

#[test]
fn keys_of_weight_1_change_nothing() {
    let heads = Heads {
        heads: 2,
        kv_heads: 1,
        head_dim: 80,
    };
    let mut problem = Problem::random(heads, vec![0, 70, 270], 1.0, &mut Random(4));
    for isa in isas() {
        problem.key_weights = None;
        let expected = problem.run(&pool(isa));
        problem.key_weights = Some(vec![1.0; 270]);
        assert_eq!(problem.run(&pool(isa)), expected, "{isa}");
    }
}

#[test]
fn one_key_gives_its_value() {
    // With one key, whose attention weight is 1, and a value that is its own maximum, only the scale is rounded, to half
    // precision.
    let heads = Heads {
        heads: 2,
        kv_heads: 2,
        head_dim: 40,
    };
    let problem = Problem::random(heads, (0..10).collect(), 1.0, &mut Random(5));
    for isa in isas() {
        let out = problem.run(&pool(isa));
        for (row, out) in out.chunks(80).enumerate() {
            for (d, out) in out.iter().enumerate() {
                let value = problem.qkv[row * problem.stride() + 160 + d];
                assert!(
                    (out - value).abs() <= value.abs() * 2f32.powi(-10) + 2f32.powi(-17),
                    "{isa}: {out}, not {value}"
                );
            }
        }
    }
}

#[test]
fn many_small_weights_beside_a_large_one_are_kept() {
    // One key of 128 has 300 times the attention weight of each other. These round to zero or one step, yet their sum is
    // 30 % of the total.
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
    };
    let mut problem = Problem::random(heads, vec![0, 128], 1.0, &mut Random(6));
    let stride = problem.stride();
    for (i, row) in problem.qkv.chunks_mut(stride).enumerate() {
        row.fill(0.0);
        row[0] = 300f32.ln();
        row[16] = if i == 0 { 1.0 } else { 0.0 };
        row[32..48].fill(if i == 0 { 0.0 } else { 1.0 });
    }
    problem.scale = 1.0;
    let exact = 127.0 / 427.0;
    for isa in isas() {
        for out in problem.run(&pool(isa)) {
            // Error of the score: half a step of the query and of the keys minus their mean, each at most 1 / 126 of ln 300.
            assert!(
                (out - exact).abs() < 0.03,
                "{isa}: {out}, not {exact}: the small weights are lost"
            );
        }
    }
}

#[test]
fn nan_shows_in_the_result() {
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
    };
    for column in [0, 16, 32] {
        let mut problem = Problem::random(heads, vec![0, 70, 200], 1.0, &mut Random(7));
        let stride = problem.stride();
        problem.qkv[20 * stride + column + 3] = f32::NAN;
        for isa in isas() {
            let out = problem.run(&pool(isa));
            assert!(out[20 * 16..21 * 16].iter().any(|x| x.is_nan()), "{isa}");
            assert!(
                out[70 * 16..].iter().all(|x| x.is_finite()),
                "{isa}: the other segment is unharmed"
            );
        }
    }
}
