//! The attention that keys receive against a plain softmax in double precision, on every instruction set of this
//! machine.

mod support;

use edge_lmm_kernels::{Heads, Mask, Rows, ThreadPool, WeightedMask, attention_received};
use proptest::prelude::*;
use support::{Random, isas, pool, threads};

/// Queries and keys, as columns of one matrix.
struct Problem {
    heads: Heads,
    q_len: usize,
    kv_len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    scale: f32,
}

impl Problem {
    fn random(heads: Heads, q_len: usize, kv_len: usize, random: &mut Random) -> Self {
        Self {
            heads,
            q_len,
            kv_len,
            q: random.normals(q_len * (heads.heads * heads.head_dim + 3)),
            k: random.normals(kv_len * (heads.kv_heads * heads.head_dim + 5)),
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        }
    }

    fn q(&self) -> Rows<'_> {
        Rows {
            data: &self.q,
            stride: self.heads.heads * self.heads.head_dim + 3,
        }
    }

    fn k(&self) -> Rows<'_> {
        Rows {
            data: &self.k,
            stride: self.heads.kv_heads * self.heads.head_dim + 5,
        }
    }

    fn run<'a>(&self, pool: &ThreadPool, mask: impl Into<WeightedMask<'a>>) -> Vec<f32> {
        let (heads, q, k) = (self.heads, self.q(), self.k());
        attention_received(pool, heads, q, self.q_len, k, self.kv_len, mask, self.scale)
    }

    /// Compares with the definition. Error bound: an error `e` of the scores changes each attention weight by at most
    /// the factor `exp(2 e)`. A score is a sum of `head_dim + 2` products of magnitude `|q k| * scale`. The exponential
    /// and the sums over keys add their own relative errors, and so do the sums over queries and heads.
    fn check(&self, out: &[f32], sees: impl Fn(usize, usize) -> bool, weights: &[f32], what: &str) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        let unit = f64::from(f32::EPSILON) / 2.0;
        let (mut sums, mut bounds) = (vec![0.0; self.kv_len], vec![0.0; self.kv_len]);
        let mut counts = vec![0; self.kv_len];
        for (i, h) in (0..self.q_len).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let q = &self.q[i * self.q().stride + h * head_dim..][..head_dim];
            let column = h / (heads / kv_heads) * head_dim;
            let (mut scores, mut error) = (vec![f64::NEG_INFINITY; self.kv_len], 0f64);
            for j in (0..self.kv_len).filter(|j| sees(i, *j)) {
                let key = &self.k[j * self.k().stride + column..][..head_dim];
                let products: Vec<f64> = q
                    .iter()
                    .zip(key)
                    .map(|(q, k)| f64::from(*q) * f64::from(*k))
                    .collect();
                let (scale, log) = (f64::from(self.scale), f64::from(weights[j]).ln());
                scores[j] = products.iter().sum::<f64>() * scale + log;
                let magnitude = products.iter().map(|x| x.abs()).sum::<f64>() * scale + log.abs();
                error = error.max((head_dim + 4) as f64 * 2.0 * unit * magnitude);
                counts[j] += 1;
            }
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for (j, score) in scores.iter().enumerate().filter(|(j, _)| sees(i, *j)) {
                let share = (score - top).exp() / total;
                sums[j] += share;
                bounds[j] += share * (2.0 * error + 1024.0 * unit);
            }
        }
        for (j, found) in out.iter().enumerate() {
            let count = f64::from(counts[j].max(1));
            let (exact, bound) = (
                sums[j] / count,
                (bounds[j] + sums[j] * count * unit) / count,
            );
            assert!(
                (f64::from(*found) - exact).abs() <= bound + 1e-30,
                "{what}: key {j} receives {found}, not {exact} +- {bound}"
            );
        }
    }
}

fn heads() -> impl Strategy<Value = Heads> {
    let head_dims = prop::sample::select(&[20, 64, 72, 80, 88, 128][..]);
    (1usize..4, 1usize..4, head_dims).prop_map(|(kv_heads, group, head_dim)| Heads {
        heads: kv_heads * group,
        kv_heads,
        head_dim,
    })
}

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn of_every_mask(heads in heads(), q_len in 1usize..200, past in 0usize..90, kind in 0usize..4, cut in 1usize..90, weighted: bool, seed: u64) {
        let mut random = Random(seed);
        let past = if kind == 2 { 0 } else { past };
        let problem = Problem::random(heads, q_len, past + q_len, &mut random);
        let weights: Vec<f32> = match weighted {
            false => vec![1.0; problem.kv_len],
            true => random.normals(problem.kv_len).iter().map(|x| (2.0 * x).exp()).collect(),
        };
        let ends = [0, cut.min(q_len), cut.min(q_len), q_len];
        // Windows; the last queries see nothing.
        let ranges: Vec<_> = (0..q_len)
            .map(|i| if i + 3 > q_len { q_len..q_len } else { i.saturating_sub(cut)..i + 1 })
            .collect();
        let mask = [Mask::Full, Mask::Causal, Mask::Segments(&ends), Mask::Ranges(&ranges)][kind];
        let sees = |i: usize, j: usize| match mask {
            Mask::Full => true,
            Mask::Causal => j <= past + i,
            Mask::Segments(ends) => (i < ends[1]) == (j < ends[1]),
            Mask::Ranges(ranges) => ranges[i].contains(&j),
        };
        let mask = WeightedMask { mask, key_weights: weighted.then_some(&weights[..]) };
        for isa in isas() {
            let out = problem.run(&pool(isa), mask);
            problem.check(&out, sees, &weights, &format!("{isa} {mask:?} {heads:?}"));
            for n in [1, 3] {
                let other = problem.run(&ThreadPool::with_isa(threads(n), isa), mask);
                prop_assert_eq!(&other, &out, "{} {} threads", isa, n);
            }
        }
    }
}

/// The probabilities of a query add up to 1, so the mean share of a key of `n` is `1 / n`, also if the heads
/// are computed in several batches.
#[test]
fn shares_add_up() {
    let heads = Heads {
        heads: 12,
        kv_heads: 12,
        head_dim: 128,
    };
    let problem = Problem::random(heads, 50, 1000, &mut Random(3));
    for isa in isas() {
        let total: f32 = problem.run(&pool(isa), Mask::Full).iter().sum();
        assert!((total - 1.0).abs() < 1e-5, "{isa}: {total}");
    }
}

#[test]
fn nan_shows_in_the_result() {
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
    };
    let mut problem = Problem::random(heads, 60, 60, &mut Random(7));
    problem.q[40 * 19 + 3] = f32::NAN;
    for isa in isas() {
        let out = problem.run(&pool(isa), Mask::Segments(&[0, 30, 60]));
        assert!(out[..30].iter().all(|x| x.is_finite()), "{isa}");
        assert!(out[30..].iter().all(|x| x.is_nan()), "{isa}");
    }
}
