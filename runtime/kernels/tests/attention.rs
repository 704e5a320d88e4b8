//! Attention against a plain softmax in double precision, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::attention::CHUNK;
use edge_lmm_kernels::{
    CacheError, Heads, KvCache, Mask, Rows, ThreadPool, WeightedMask, attention, attention_row,
    cached_attention,
};
use proptest::prelude::*;
use support::{Random, isas, pool, threads};

/// An attention problem. Queries, keys and values are columns of one matrix, as the output of a fused projection.
struct Problem {
    heads: Heads,
    q_len: usize,
    kv_len: usize,
    q: Vec<f32>,
    kv: Vec<f32>,
    scale: f32,
}

impl Problem {
    fn random(heads: Heads, q_len: usize, kv_len: usize, random: &mut Random) -> Self {
        let q = random.normals(q_len * (heads.heads * heads.head_dim + 3));
        let kv = random.normals(kv_len * (2 * heads.kv_heads * heads.head_dim + 5));
        Self {
            heads,
            q_len,
            kv_len,
            q,
            kv,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        }
    }

    fn q(&self) -> Rows<'_> {
        Rows {
            data: &self.q,
            stride: self.heads.heads * self.heads.head_dim + 3,
        }
    }

    fn kv_stride(&self) -> usize {
        2 * self.heads.kv_heads * self.heads.head_dim + 5
    }

    fn k(&self) -> Rows<'_> {
        Rows {
            data: &self.kv,
            stride: self.kv_stride(),
        }
    }

    fn v(&self) -> Rows<'_> {
        let offset = (self.heads.kv_heads * self.heads.head_dim).min(self.kv.len());
        Rows {
            data: &self.kv[offset..],
            stride: self.kv_stride(),
        }
    }

    fn width(&self) -> usize {
        self.heads.heads * self.heads.head_dim
    }

    fn run<'a>(
        &self,
        pool: &ThreadPool,
        mask: impl Into<WeightedMask<'a>>,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let (q, k, v) = (self.q(), self.k(), self.v());
        attention(
            pool,
            self.heads,
            q,
            self.q_len,
            k,
            v,
            self.kv_len,
            mask,
            bias,
            self.scale,
        )
    }

    /// Compares with the definition. Error bound: an error `e` of the scores changes each attention weight by at most
    /// the factor `exp(2 e)`, so the result by `2 e * max |v|`. A score is a sum of `head_dim + 2` products of
    /// magnitude `|q k| * scale`. The exponential and the sums over keys (in lanes and chunks of fewer than 2^10
    /// additions) add their own relative errors.
    fn check(
        &self,
        out: &[f32],
        sees: impl Fn(usize, usize) -> bool,
        bias: Option<&[f32]>,
        what: &str,
    ) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        let unit = f64::from(f32::EPSILON) / 2.0;
        for i in 0..self.q_len {
            for h in 0..heads {
                let q = &self.q[i * self.q().stride + h * head_dim..][..head_dim];
                let kv_head = h / (heads / kv_heads);
                let key =
                    |j: usize| &self.kv[j * self.kv_stride() + kv_head * head_dim..][..head_dim];
                let value = |j: usize| {
                    &self.v().data[j * self.kv_stride() + kv_head * head_dim..][..head_dim]
                };
                let (mut weights, mut score_error) = (vec![0.0; self.kv_len], 0f64);
                let mut top = f64::NEG_INFINITY;
                for j in (0..self.kv_len).filter(|j| sees(i, *j)) {
                    let products = || {
                        q.iter()
                            .zip(key(j))
                            .map(|(q, k)| f64::from(*q) * f64::from(*k))
                    };
                    let bias = bias.map_or(0.0, |b| {
                        f64::from(b[(h * self.q_len + i) * self.kv_len + j])
                    });
                    weights[j] = products().sum::<f64>() * f64::from(self.scale) + bias;
                    let magnitude =
                        products().map(f64::abs).sum::<f64>() * f64::from(self.scale) + bias.abs();
                    score_error = score_error.max((head_dim + 4) as f64 * 2.0 * unit * magnitude);
                    top = top.max(weights[j]);
                }
                let mut total = 0.0;
                for (j, weight) in weights.iter_mut().enumerate() {
                    *weight = if sees(i, j) {
                        (*weight - top).exp()
                    } else {
                        0.0
                    };
                    total += *weight;
                }
                for d in 0..head_dim {
                    let mut exact = 0.0;
                    let mut largest = 0f64;
                    for (j, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                        exact += weight / total * f64::from(value(j)[d]);
                        largest = largest.max(f64::from(value(j)[d]).abs());
                    }
                    let bound = (2.0 * score_error + 1024.0 * unit) * largest + 1e-30;
                    let found = f64::from(out[i * self.width() + h * head_dim + d]);
                    assert!(
                        (found - exact).abs() <= bound,
                        "{what}: query {i}, head {h}, element {d} is {found}, not {exact} +- {bound}"
                    );
                }
            }
        }
    }
}

/// Head sizes of the models: 16 and 20 in tiny ones, 64 (CLIP, OPT), 72 (SigLIP), 80 (Qwen2-VL), 88 (ViT-g), 128 (text).
const HEAD_DIMS: [usize; 7] = [16, 20, 64, 72, 80, 88, 128];

fn heads() -> impl Strategy<Value = Heads> {
    (1usize..4, 1usize..4, prop::sample::select(&HEAD_DIMS[..])).prop_map(
        |(kv_heads, group, head_dim)| Heads {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
        },
    )
}

proptest! {
    #![proptest_config(support::cases(16))]

    #[test]
    fn full(heads in heads(), q_len in 1usize..70, kv_len in 1usize..300, seed: u64) {
        let problem = Problem::random(heads, q_len, kv_len, &mut Random(seed));
        for isa in isas() {
            let out = problem.run(&pool(isa), Mask::Full, None);
            problem.check(&out, |_, _| true, None, &format!("{isa} full {heads:?}"));
        }
    }

    #[test]
    fn causal(heads in heads(), q_len in 1usize..200, past in 0usize..150, seed: u64) {
        let problem = Problem::random(heads, q_len, past + q_len, &mut Random(seed));
        for isa in isas() {
            let out = problem.run(&pool(isa), Mask::Causal, None);
            problem.check(&out, |i, j| j <= past + i, None, &format!("{isa} causal {heads:?}"));
        }
    }

    #[test]
    fn segments(heads in heads(), lengths in prop::collection::vec(0usize..90, 1..6), seed: u64) {
        let ends: Vec<usize> =
            std::iter::once(0).chain(lengths.iter().scan(0, |end, n| { *end += n; Some(*end) })).collect();
        let len = *ends.last().unwrap();
        let problem = Problem::random(heads, len, len, &mut Random(seed));
        let segment = |i: usize| ends.iter().filter(|end| **end <= i).count();
        for isa in isas() {
            let out = problem.run(&pool(isa), Mask::Segments(&ends), None);
            problem.check(&out, |i, j| segment(i) == segment(j), None, &format!("{isa} {ends:?} {heads:?}"));
        }
    }

    #[test]
    fn windows_with_runs_in_both_directions(heads in heads(), q_len in 1usize..200, past in 0usize..150, window in 1usize..200, run in 1usize..90, seed: u64) {
        let problem = Problem::random(heads, q_len, past + q_len, &mut Random(seed));
        let ranges = ranges(q_len, past, window, run);
        for isa in isas() {
            let out = problem.run(&pool(isa), Mask::Ranges(&ranges), None);
            problem.check(&out, |i, j| ranges[i].contains(&j), None, &format!("{isa} {window} {run} {heads:?}"));
            for n in 1..=3 {
                let other = problem.run(&ThreadPool::with_isa(threads(n), isa), Mask::Ranges(&ranges), None);
                prop_assert_eq!(&other, &out, "{} threads", n);
            }
        }
    }

    #[test]
    fn biased(heads in heads(), q_len in 1usize..40, kv_len in 1usize..200, seed: u64) {
        let mut random = Random(seed);
        let problem = Problem::random(heads, q_len, kv_len, &mut random);
        let mut bias = random.normals(heads.heads * q_len * kv_len);
        // Masks some keys by the bias, as padding masks do, but never the first one.
        for (at, bias) in bias.iter_mut().enumerate() {
            if at % kv_len != 0 && random.uniform() < 0.3 {
                *bias = -1e9;
            }
        }
        for isa in isas() {
            let out = problem.run(&pool(isa), Mask::Full, Some(&bias));
            let finite: Vec<f32> = bias.iter().map(|b| if *b < -1e8 { f32::NEG_INFINITY } else { *b }).collect();
            let masked = problem.run(&pool(isa), Mask::Full, Some(&finite));
            prop_assert_eq!(&out, &masked, "-1e9 and -inf switch a key off alike");
            check_biased(&problem, &out, &bias, isa);
        }
    }

    /// A key of weight `w` has the bias `ln w`, for every mask and number of threads.
    #[test]
    fn weighted_keys(heads in heads(), len in 1usize..200, kind in 0usize..4, cut in 0usize..200, biased: bool, seed: u64) {
        let mut random = Random(seed);
        let problem = Problem::random(heads, len, len, &mut random);
        let bias = biased.then(|| random.normals(heads.heads * len * len));
        let weights = weights(len, &mut random);
        let (ends, ranges) = ([0, cut.min(len), len], ranges(len, 0, cut + 1, 1 + cut / 3));
        let mask = [Mask::Full, Mask::Causal, Mask::Segments(&ends), Mask::Ranges(&ranges)][kind];
        let sees = |i: usize, j: usize| match mask {
            Mask::Full => true,
            Mask::Causal => j <= i,
            Mask::Segments(ends) => (i < ends[1]) == (j < ends[1]),
            Mask::Ranges(ranges) => ranges[i].contains(&j),
        };
        let total: Vec<f32> = (0..heads.heads * len * len)
            .map(|at| bias.as_ref().map_or(0.0, |bias| bias[at]) + weights[at % len].ln())
            .collect();
        let mask = WeightedMask { mask, key_weights: Some(&weights) };
        for isa in isas() {
            let out = problem.run(&pool(isa), mask, bias.as_deref());
            problem.check(&out, sees, Some(&total), &format!("{isa} weighted {mask:?} {heads:?}"));
            for n in [1, 3] {
                let other = problem.run(&ThreadPool::with_isa(threads(n), isa), mask, bias.as_deref());
                prop_assert_eq!(&other, &out, "{} threads", n);
            }
        }
    }

    #[test]
    fn threads_and_splitting_do_not_change_a_bit(heads in heads(), q_len in 1usize..80, past in 0usize..400, seed: u64) {
        let problem = Problem::random(heads, q_len, past + q_len, &mut Random(seed));
        for isa in isas() {
            let one = problem.run(&ThreadPool::with_isa(threads(1), isa), Mask::Causal, None);
            for n in 2..=4 {
                let several = problem.run(&ThreadPool::with_isa(threads(n), isa), Mask::Causal, None);
                prop_assert_eq!(&several, &one, "{} threads", n);
            }
            // Token by token over a cache that grows, bit for bit.
            let pool = pool(isa);
            let mut cache = KvCache::new(2, heads.kv_heads, heads.head_dim, 1, false).unwrap();
            for token in 0..past + q_len {
                if token == cache.capacity() {
                    cache.grow(2 * token + 1).unwrap();
                }
                let at = token * problem.kv_stride();
                let k = Rows { data: &problem.k().data[at..], stride: 0 };
                let v = Rows { data: &problem.v().data[at..], stride: 0 };
                cache.append(1, k, v, 1);
                if token >= past {
                    let i = token - past;
                    let q = Rows { data: &problem.q[i * problem.q().stride..], stride: 0 };
                    let out = cached_attention(&pool, heads, q, 1, &cache, 1, token + 1, Mask::Causal, None, problem.scale);
                    prop_assert_eq!(&out[..], &one[i * problem.width()..][..problem.width()], "token {}", token);
                }
                cache.advance(1);
            }
        }
    }
}

/// Weights of keys, from the weight of a tenth of a token to that of hundreds.
fn weights(len: usize, random: &mut Random) -> Vec<f32> {
    random
        .normals(len)
        .iter()
        .map(|x| (2.0 * x).exp())
        .collect()
}

/// A key of weight `n` counts as `n` equal keys, and keys of weight 1 change nothing.
#[test]
fn a_weight_is_a_number_of_keys() {
    let heads = Heads {
        heads: 2,
        kv_heads: 2,
        head_dim: 72,
    };
    let problem = Problem::random(heads, 30, 150, &mut Random(11));
    let counts: Vec<usize> = (0..150).map(|j| 1 + j % 4).collect();
    let mut repeated = Vec::new();
    for (row, count) in problem.kv.chunks(problem.kv_stride()).zip(&counts) {
        repeated.extend(std::iter::repeat_n(row, *count).flatten());
    }
    let repeated = Problem {
        kv: repeated,
        kv_len: counts.iter().sum(),
        q: problem.q.clone(),
        ..problem
    };
    let weights: Vec<f32> = counts.iter().map(|count| *count as f32).collect();
    let weighted = |key_weights| WeightedMask {
        mask: Mask::Full,
        key_weights: Some(key_weights),
    };
    for isa in isas() {
        let pool = pool(isa);
        let found = problem.run(&pool, weighted(&weights), None);
        let expected = repeated.run(&pool, Mask::Full, None);
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{isa}: {found}, {expected}"
            );
        }
        let ones = problem.run(&pool, weighted(&[1.0; 150]), None);
        assert_eq!(ones, problem.run(&pool, Mask::Full, None), "{isa}");
    }
}

#[test]
fn weights_must_be_finite_and_positive() {
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
    };
    let problem = Problem::random(heads, 3, 3, &mut Random(12));
    let pool = pool(isas()[0]);
    for weights in [&[1.0; 2][..], &[1.0, 0.0, 1.0], &[1.0, -1.0, 1.0]]
        .into_iter()
        .chain([&[f32::NAN; 3][..], &[f32::INFINITY; 3]])
    {
        let mask = WeightedMask {
            mask: Mask::Full,
            key_weights: Some(weights),
        };
        let run = std::panic::AssertUnwindSafe(|| problem.run(&pool, mask, None));
        assert!(std::panic::catch_unwind(run).is_err(), "{weights:?}");
    }
}

/// Keys and values of one token of a problem.
fn token(problem: &Problem, at: usize) -> [Rows<'_>; 2] {
    let at = at * problem.kv_stride();
    [problem.k(), problem.v()].map(|rows| Rows {
        data: &rows.data[at..],
        stride: 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The weights of a query, in the mean over the heads, against a plain softmax in double precision.
    #[test]
    fn weights_of_a_query(heads in heads(), len in 1usize..400, cut in 0usize..400, half: bool, seed: u64) {
        let problem = Problem::random(heads, 1, len, &mut Random(seed));
        let keys = cut.min(len - 1)..len;
        let mut cache = KvCache::new(2, heads.kv_heads, heads.head_dim, len, half).unwrap();
        cache.append(1, problem.k(), problem.v(), len);
        let q = &problem.q[..problem.width()];
        let group = heads.heads / heads.kv_heads;
        let mut expected = vec![0.0; keys.len()];
        for head in 0..heads.heads {
            let q = &q[head * heads.head_dim..][..heads.head_dim];
            let score = |key: usize| -> f64 {
                let k = &problem.k().data[key * problem.kv_stride() + head / group * heads.head_dim..];
                let k = k.iter().map(|k| match half {
                    true => half::f16::from_f32(*k).to_f64(),
                    false => f64::from(*k),
                });
                q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>() * f64::from(problem.scale)
            };
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (expected, score) in expected.iter_mut().zip(&scores) {
                *expected += (score - max).exp() / sum / heads.heads as f64;
            }
        }
        for isa in isas() {
            let run = |n| {
                let pool = ThreadPool::with_isa(threads(n), isa);
                attention_row(&pool, heads, q, &cache, 1, keys.clone(), problem.scale)
            };
            let found = run(1);
            for (found, expected) in found.iter().zip(&expected) {
                // The error of a score is below 1e-5, which is also that of its exponential.
                prop_assert!((f64::from(*found) - expected).abs() <= 2e-5 * expected + 1e-9, "{isa}: {found} {expected}");
            }
            prop_assert_eq!(&run(3), &found);
        }
    }

    /// A layer that holds only some of the tokens attends as if the others were masked, and as a cache of
    /// these tokens alone does; the other layer holds all of them. Both survive growing and forking.
    #[test]
    fn layers_of_different_lengths(heads in heads(), first in 1usize..200, later in 1usize..20, seed: u64, half: bool) {
        let mut random = Random(seed);
        let total = first + later;
        let problem = Problem::random(heads, 1, total, &mut random);
        let is_kept = |at: usize| {
            let mixed = at.wrapping_mul(2_654_435_761).wrapping_add(seed as usize);
            at >= first || !mixed.is_multiple_of(3)
        };
        let kept: Vec<usize> = (0..first).filter(|&at| is_kept(at)).collect();
        let new = |layers| KvCache::new(layers, heads.kv_heads, heads.head_dim, first, half).unwrap();
        let (mut cache, mut whole, mut alone) = (new(2), new(1), new(1));
        let append = |cache: &mut KvCache, layer: usize, at: usize| {
            let [k, v] = token(&problem, at);
            cache.append(layer, k, v, 1);
            cache.advance_layers(layer..layer + 1, 1);
        };
        for at in 0..first {
            append(&mut cache, 0, at);
            append(&mut whole, 0, at);
        }
        for &at in &kept {
            append(&mut cache, 1, at);
            append(&mut alone, 0, at);
        }
        prop_assert_eq!((cache.len(), cache.len_of(0), cache.len_of(1)), (first, first, kept.len()));
        let pool = pool(isas()[0]);
        let attend = |cache: &KvCache, layer: usize, bias: Option<&[f32]>| {
            let (q, len) = (problem.q(), cache.len_of(layer));
            cached_attention(&pool, heads, q, 1, cache, layer, len, Mask::Causal, bias, problem.scale)
        };
        for at in first..total {
            for cache in [&mut cache, &mut whole, &mut alone] {
                cache.grow(at + 1).unwrap();
            }
            append(&mut cache, 0, at);
            append(&mut cache, 1, at);
            append(&mut whole, 0, at);
            append(&mut alone, 0, at);
            let found = attend(&cache, 1, None);
            prop_assert_eq!(&found, &attend(&alone, 0, None));
            prop_assert_eq!(attend(&cache, 0, None), attend(&whole, 0, None));
            let masked: Vec<f32> = (0..=at).map(|at| if is_kept(at) { 0.0 } else { f32::NEG_INFINITY }).collect();
            let masked = masked.repeat(heads.heads);
            for (found, expected) in found.iter().zip(attend(&whole, 0, Some(&masked))) {
                prop_assert!((found - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{found} {expected}");
            }
        }
        let mut fork = cache.fork().unwrap();
        prop_assert_eq!((fork.len_of(0), fork.len_of(1)), (total, kept.len() + later));
        prop_assert_eq!(attend(&fork, 1, None), attend(&cache, 1, None));
        fork.truncate(first);
        prop_assert_eq!((fork.len_of(0), fork.len_of(1)), (first, kept.len()));
        fork.truncate_layers(0..1, 0);
        prop_assert_eq!((fork.len_of(0), fork.len_of(1)), (0, kept.len()));
        fork.truncate_layers(1..2, 0);
        for at in 0..first {
            append(&mut fork, 1, at);
        }
        prop_assert_eq!(fork.len_of(1), first);
        cache.truncate(0);
        prop_assert_eq!((cache.len_of(0), cache.len_of(1)), (0, 0));
    }
}

/// Causal attention within a window, in which every second `run` of queries sees itself in both directions.
fn ranges(q_len: usize, past: usize, window: usize, run: usize) -> Vec<std::ops::Range<usize>> {
    let range = |i: usize| {
        let (block, at) = (i / run, past + i);
        let start = (at + 1).saturating_sub(window);
        match block % 2 {
            0 => start..at + 1,
            _ => start.min(past + block * run)..past + ((block + 1) * run).min(q_len),
        }
    };
    (0..q_len).map(range).collect()
}

#[test]
fn a_fork_has_the_same_positions_and_a_life_of_its_own() {
    let heads = Heads {
        heads: 4,
        kv_heads: 2,
        head_dim: 20,
    };
    let problem = Problem::random(heads, 150, 150, &mut Random(8));
    let pool = pool(isas()[0]);
    for half in [false, true] {
        let mut cache = KvCache::new(1, 2, 20, 150, half).unwrap();
        cache.append(0, problem.k(), problem.v(), 150);
        cache.advance(150);
        let run = |cache: &KvCache| {
            let (q, mask) = (problem.q(), Mask::Causal);
            cached_attention(&pool, heads, q, 150, cache, 0, 150, mask, None, 0.2)
        };
        let (before, mut fork) = (run(&cache), cache.fork().unwrap());
        assert_eq!((fork.len(), fork.capacity()), (150, 150));
        assert_eq!(run(&fork), before);
        fork.truncate(0);
        fork.append(0, problem.v(), problem.k(), 150);
        assert_eq!(run(&cache), before);
        assert_ne!(run(&fork), before);
    }
}

/// A cache of another capacity that is filled with the bytes of some positions is bitwise the same: as bytes and
/// in its attention. The bytes are the keys and values of each head, row by row.
#[test]
fn positions_are_stored_as_bytes_and_restored() {
    for (kv_heads, head_dim, len) in [(2, 128, 257), (3, 20, 130), (1, 7, 128), (2, 36, 1)] {
        let heads = Heads {
            heads: kv_heads,
            kv_heads,
            head_dim,
        };
        let problem = Problem::random(heads, 1, 300, &mut Random(head_dim as u64));
        let pool = pool(isas()[0]);
        for half in [false, true] {
            let mut cache = KvCache::new(2, kv_heads, head_dim, 300, half).unwrap();
            cache.append(0, problem.k(), problem.v(), 300);
            cache.append(1, problem.v(), problem.k(), 300);
            cache.advance(300);
            let mut other = KvCache::new(2, kv_heads, head_dim, len + 3, half).unwrap();
            for layer in 0..2 {
                let bytes = cache.layer_bytes(layer, len);
                other.set_layer_bytes(layer, len, &bytes);
            }
            other.advance(len);
            cache.truncate(len);
            for layer in 0..2 {
                let bytes = cache.layer_bytes(layer, len);
                assert_eq!(bytes, other.layer_bytes(layer, len));
                let run = |cache: &KvCache| {
                    let (q, mask) = (problem.q(), Mask::Causal);
                    cached_attention(&pool, heads, q, 1, cache, layer, len, mask, None, 0.2)
                };
                assert_eq!(run(&cache), run(&other));
                if !half {
                    let row = |row: usize, of: Rows, head: usize| {
                        let at = row * of.stride + head * head_dim;
                        of.data[at..at + head_dim].to_vec()
                    };
                    let (k, v) = match layer {
                        0 => (problem.k(), problem.v()),
                        _ => (problem.v(), problem.k()),
                    };
                    let rows = [k, v].into_iter().flat_map(|of| {
                        let all =
                            (0..kv_heads).flat_map(move |head| (0..len).map(move |i| (head, i)));
                        all.flat_map(move |(head, i)| row(i, of, head))
                    });
                    let expected: Vec<u8> = rows.flat_map(f32::to_le_bytes).collect();
                    assert_eq!(bytes, expected);
                }
            }
        }
    }
}

/// The results of a cache in half precision are bitwise those of a cache in single precision with rounded keys and
/// values.
#[test]
fn half_precision_is_single_precision_of_rounded_numbers() {
    for (heads, kv_heads, head_dim) in [(12, 2, 128), (3, 3, 80), (4, 2, 12), (2, 1, 7)] {
        let heads = Heads {
            heads,
            kv_heads,
            head_dim,
        };
        let total = 300;
        let problem = Problem::random(heads, total, total, &mut Random(head_dim as u64));
        let mut rounded = problem.kv.clone();
        for x in &mut rounded {
            *x = half::f16::from_f32(*x).to_f32();
        }
        let rounded = Problem {
            kv: rounded,
            q: problem.q.clone(),
            ..problem
        };
        for isa in isas() {
            let pool = pool(isa);
            let [single, half] = [false, true].map(|half| {
                let mut cache = KvCache::new(2, kv_heads, head_dim, 257, half).unwrap();
                // The half-precision cache rounds the original numbers; the other one gets rounded ones.
                let problem = if half { &problem } else { &rounded };
                let mut out = Vec::new();
                for (start, end) in [(0, 257), (257, 258), (258, total)] {
                    cache.grow(end).unwrap();
                    let row = |rows: Rows, start: usize| rows.data[start * rows.stride..].to_vec();
                    let (k, v) = (row(problem.k(), start), row(problem.v(), start));
                    let stride = problem.kv_stride();
                    let [k, v] = [&k, &v].map(|data| Rows { data, stride });
                    cache.append(1, k, v, end - start);
                    let q = Rows {
                        data: &problem.q[start * problem.q().stride..],
                        ..problem.q()
                    };
                    let scale = problem.scale;
                    out.extend(cached_attention(
                        &pool,
                        heads,
                        q,
                        end - start,
                        &cache,
                        1,
                        end,
                        Mask::Causal,
                        None,
                        scale,
                    ));
                    cache.advance(end - start);
                }
                out
            });
            assert_eq!(half, single, "{isa} {heads:?}");
        }
    }
}

#[test]
fn what_is_too_large_for_half_precision_stays_finite() {
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
    };
    let large = Rows {
        data: &[1e6; 8],
        stride: 0,
    };
    let nan = Rows {
        data: &[f32::NAN; 8],
        stride: 0,
    };
    let pool = pool(isas()[0]);
    for (v, shows) in [(large, false), (nan, true)] {
        let mut cache = KvCache::new(1, 1, 8, 1, true).unwrap();
        cache.append(0, large, v, 1);
        let q = Rows {
            data: &[0.0; 8],
            stride: 0,
        };
        let out = cached_attention(&pool, heads, q, 1, &cache, 0, 1, Mask::Causal, None, 1.0);
        assert!(
            out.iter()
                .all(|x| if shows { x.is_nan() } else { *x == 65504.0 }),
            "{out:?}"
        );
    }
}

/// [`Problem::check`] with a bias that masks keys with -1e9.
fn check_biased(problem: &Problem, out: &[f32], bias: &[f32], isa: edge_lmm_kernels::Isa) {
    let (q_len, kv_len) = (problem.q_len, problem.kv_len);
    // The masked keys differ by head: one check per head, with the outputs of the other heads unchanged.
    for h in 0..problem.heads.heads {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = problem.heads;
        let single = Problem {
            heads: Heads {
                heads: 1,
                kv_heads: 1,
                head_dim,
            },
            q_len,
            kv_len,
            q: (0..q_len)
                .flat_map(|i| {
                    let row = &problem.q[i * problem.q().stride + h * head_dim..][..head_dim];
                    row.iter().copied().chain([0.0; 3])
                })
                .collect(),
            kv: (0..kv_len)
                .flat_map(|j| {
                    let column = h / (heads / kv_heads) * head_dim;
                    let k = &problem.k().data[j * problem.kv_stride() + column..][..head_dim];
                    let v = &problem.v().data[j * problem.kv_stride() + column..][..head_dim];
                    k.iter().chain(v).copied().chain([0.0; 5])
                })
                .collect(),
            scale: problem.scale,
        };
        let bias = &bias[h * q_len * kv_len..][..q_len * kv_len];
        let out: Vec<f32> = (0..q_len)
            .flat_map(|i| out[i * problem.width() + h * head_dim..][..head_dim].to_vec())
            .collect();
        single.check(
            &out,
            |i, j| bias[i * kv_len + j] > -1e8,
            Some(bias),
            &format!("{isa} head {h} with bias"),
        );
    }
}

#[test]
fn a_prefill_may_be_cut_into_pieces() {
    let heads = Heads {
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
    };
    let problem = Problem::random(heads, 300, 300, &mut Random(5));
    for isa in isas() {
        let pool = pool(isa);
        let whole = problem.run(&pool, Mask::Causal, None);
        let mut cache = KvCache::new(1, 2, 64, 300, false).unwrap();
        let mut out = Vec::new();
        for (start, end) in [(0, 1), (1, 100), (100, 260), (260, 300)] {
            let (k, v) = (
                &problem.k().data[start * problem.kv_stride()..],
                &problem.v().data[start * problem.kv_stride()..],
            );
            let stride = problem.kv_stride();
            cache.append(
                0,
                Rows { data: k, stride },
                Rows { data: v, stride },
                end - start,
            );
            let q = Rows {
                data: &problem.q[start * problem.q().stride..],
                ..problem.q()
            };
            out.extend(cached_attention(
                &pool,
                heads,
                q,
                end - start,
                &cache,
                0,
                end,
                Mask::Causal,
                None,
                problem.scale,
            ));
            cache.advance(end - start);
        }
        assert_eq!(out, whole, "{isa}");
    }
}

#[test]
fn truncated_positions_are_forgotten() {
    let heads = Heads {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
    };
    let problem = Problem::random(heads, 40, 40, &mut Random(6));
    let pool = pool(isas()[0]);
    let mut cache = KvCache::new(1, 1, 16, 200, false).unwrap();
    let junk = vec![1e3; 150 * problem.kv_stride()];
    let junk = Rows {
        data: &junk,
        stride: problem.kv_stride(),
    };
    cache.append(0, junk, junk, 150);
    cache.advance(150);
    cache.truncate(0);
    assert_eq!(cache.len(), 0);
    cache.append(0, problem.k(), problem.v(), 40);
    let out = cached_attention(
        &pool,
        heads,
        problem.q(),
        40,
        &cache,
        0,
        40,
        Mask::Causal,
        None,
        problem.scale,
    );
    assert_eq!(out, problem.run(&pool, Mask::Causal, None));
}

#[test]
fn a_cache_too_large_is_an_error() {
    for capacity in [usize::MAX, usize::MAX / 1024, 1 << 50] {
        assert!(matches!(
            KvCache::new(28, 2, 128, capacity, capacity % 2 == 0),
            Err(CacheError::TooLarge { .. })
        ));
    }
    assert!(matches!(
        KvCache::new(1, 1, usize::MAX, 1, false),
        Err(CacheError::TooLarge { .. })
    ));
    for (half, size) in [(false, 4), (true, 2)] {
        let cache = KvCache::new(28, 2, 128, 1000, half).unwrap();
        assert_eq!(
            cache.bytes(),
            28 * 2 * 1000usize.next_multiple_of(CHUNK) * 2 * 128 * size
        );
        assert_eq!((cache.len(), cache.capacity()), (0, 1000));
    }
}

#[test]
fn nan_shows_and_no_visible_key_gives_zeros() {
    let heads = Heads {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
    };
    let mut problem = Problem::random(heads, 3, 20, &mut Random(7));
    let second = problem.q().stride;
    problem.q[second + 4] = f32::NAN;
    let minus = vec![f32::NEG_INFINITY; 20];
    let bias = [vec![0.0; 40], minus].concat();
    for isa in isas() {
        let out = problem.run(&pool(isa), Mask::Full, Some(&bias));
        assert!(out[..16].iter().all(|v| v.is_finite()), "{isa}");
        assert!(out[16..32].iter().all(|v| v.is_nan()), "{isa}");
        assert!(out[32..].iter().all(|v| *v == 0.0), "{isa}");
    }
}
