//! The GPU operations against the reference implementation on the CPU, on random shapes. They run on any
//! Vulkan device, including software ones (Mesa's llvmpipe).

use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use burn_ndarray::NdArray;
use cubecl::Runtime;
use edge_lmm_kernels::pack::pack_rows;
use edge_lmm_ops::cube::{self, Products, Vulkan, WgpuRuntime};
use edge_lmm_ops::{
    Activation, CacheShape, Columns, Format, Heads, KernelBackend, KvStore, Mask, MatrixShape,
    WeightedMask, argmax, attention, attention_received, attention_row, cached_attention, gated,
    gated_linear, gather_rows, layer_norm, linear, reference, rms_norm, rope, rotated_attention,
    select_rows,
};
use proptest::prelude::*;

type C = NdArray<f32, i64, i8>;
type G = Vulkan;

const ACTIVATIONS: [Activation; 6] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
];

/// Largest relative rounding error: half the distance from 1 to the next f32.
const ROUNDING: f32 = 1.0 / (1u32 << 24) as f32;

/// Largest relative error of `exp(x)` in Vulkan (3 + 2 |x| units in the last place; "Precision and
/// operation of SPIR-V instructions").
fn exp_error(x: f32) -> f32 {
    (3.0 + 2.0 * x.abs()) * 2.0 * ROUNDING
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<C, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn gpu<const D: usize>(x: &Tensor<C, D>) -> Tensor<G, D> {
    Tensor::from_data(x.to_data(), &Default::default())
}

fn cpu<const D: usize>(x: Tensor<G, D>) -> Tensor<C, D> {
    Tensor::from_data(x.into_data(), &Default::default())
}

fn packed<B: Backend>(bytes: &[u8]) -> Tensor<B, 1, Int> {
    let data = TensorData::new(bytes.to_vec(), [bytes.len()]);
    let dtype = data.dtype;
    Tensor::from_data(data, (&B::Device::default(), dtype))
}

/// A packed matrix for both devices, and its dequantized weights.
struct Weight {
    shape: MatrixShape,
    gpu: Tensor<G, 1, Int>,
    dense: Tensor<C, 2>,
}

impl Weight {
    fn random(format: Format, rows: usize, cols: usize) -> Self {
        let shape = MatrixShape { format, rows, cols };
        let mut bytes = Vec::new();
        let values = random([rows, cols]).to_data().to_vec::<f32>().unwrap();
        pack_rows(shape, &values, &mut bytes).unwrap();
        let ids: Vec<u32> = (0..rows as u32).collect();
        Self {
            shape,
            gpu: packed(&bytes),
            dense: gather_rows::<C>(packed(&bytes), shape, &ids),
        }
    }
}

fn largest<const D: usize>(x: Tensor<C, D>) -> f32 {
    x.abs().max().into_scalar()
}

/// Fails if the error of an element exceeds `bound`.
fn close<const D: usize>(
    found: Tensor<G, D>,
    expected: Tensor<C, D>,
    bound: f32,
) -> Result<(), TestCaseError> {
    let found = cpu(found);
    prop_assert_eq!(found.dims(), expected.dims());
    let error = largest(found - expected);
    prop_assert!(error <= bound, "off by {error}, allowed {bound}");
    Ok(())
}

fn format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

/// Error bound of a product: the rounding errors of two sums.
fn product_error(x: &Tensor<C, 2>, weight: &Tensor<C, 2>) -> f32 {
    let cols = x.dims()[1];
    let sizes = x.clone().abs().matmul(weight.clone().abs().transpose());
    2.0 * cols as f32 * ROUNDING * largest(sizes)
}

/// Error bound after an activation: no slope exceeds 1.2, and the error of the function is that of its
/// exponential, or 2e-7 for `erf`.
fn activation_error(error: f32, size: f32) -> f32 {
    1.2 * error + size * (exp_error(1.702 * size) + 2e-7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn products_of_a_few_tokens(format in format(), tokens in 1usize..5, rows in 1usize..70, cols in 1usize..300, act in 0usize..6, bias: bool, residual: bool) {
        product(format, tokens, rows, cols, act, bias, residual)?;
    }

    /// Whole blocks are read four inputs at a time.
    #[test]
    fn products_of_whole_blocks(format in format(), tokens in 1usize..5, panels in 1usize..5, blocks in 1usize..40) {
        product(format, tokens, 8 * panels, 32 * blocks, 0, false, false)?;
    }

    #[test]
    fn products_of_many_tokens(format in format(), tokens in 5usize..150, rows in 1usize..150, cols in 1usize..200, act in 0usize..6, bias: bool, residual: bool) {
        product(format, tokens, rows, cols, act, bias, residual)?;
    }

    #[test]
    fn embeddings(format in format(), rows in 1usize..70, cols in 1usize..200, seed in 0usize..1000) {
        let weight = Weight::random(format, rows, cols);
        let ids: Vec<u32> = (0..5).map(|i| ((seed + i * i * 7) % rows) as u32).collect();
        let found = gather_rows::<G>(weight.gpu, weight.shape, &ids);
        // The product of a small integer and a half-precision number is exact.
        close(found, select_rows(weight.dense, &ids), 0.0)?;
    }

    #[test]
    fn norms(tokens in 1usize..6, width in 2usize..600) {
        let x = random([tokens, width]) * 3.0 + 0.5;
        let (gamma, beta) = (random([width]), random([width]));
        // Sums of positive terms; the square root halves their relative error.
        let relative = (width as f32 + 8.0) * ROUNDING;
        let expected = reference::rms_norm(x.clone(), gamma.clone(), 1e-6);
        let bound = relative * largest(expected.clone());
        close(rms_norm(gpu(&x), gpu(&gamma), 1e-6), expected, bound)?;
        let expected = reference::layer_norm(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        // The error of the mean is relative to the largest element, and is divided by the deviation.
        let deviation = 1e-3 + x.clone().var(1).sqrt().min().into_scalar();
        let bound = 2.0 * relative * (largest(expected.clone()) + largest(gamma.clone()) * largest(x.clone()) / deviation);
        close(layer_norm(gpu(&x), gpu(&gamma), gpu(&beta), 1e-5), expected, bound)?;
    }

    #[test]
    fn gates(tokens in 1usize..6, width in 1usize..300, act in 0usize..6) {
        let x = random([tokens, 2 * width]);
        let size = largest(x.clone());
        let expected = reference::gated(x.clone(), ACTIVATIONS[act]);
        close(gated(gpu(&x), ACTIVATIONS[act]), expected, size * activation_error(0.0, size) + 2.0 * ROUNDING)?;
    }

    #[test]
    fn rotations(tokens in 1usize..6, heads in 1usize..5, half in 1usize..40, rest in 0usize..5, column in 0usize..9) {
        let head_dim = 2 * half + rest;
        let width = heads * head_dim;
        let x = random([tokens, column + width + 3]);
        let (cos, sin) = (random([tokens, half]), random([tokens, half]));
        let rotated = reference::rope(x.clone().narrow(1, column, width), heads, head_dim, cos.clone(), sin.clone());
        let after = column + width;
        // Columns outside of the heads are unchanged.
        let mut parts = vec![rotated, x.clone().narrow(1, after, 3)];
        if column > 0 {
            parts.insert(0, x.clone().narrow(1, 0, column));
        }
        let bound = 4.0 * ROUNDING * largest(x.clone()) * largest(cos.clone()).max(largest(sin.clone()));
        let held = gpu(&x);
        close(rope(held.clone(), column, heads, head_dim, &gpu(&cos), &gpu(&sin)), Tensor::cat(parts, 1), bound)?;
        // The tensor has another owner, so it must not change.
        close(held, x, 0.0)?;
    }

    #[test]
    fn attentions(q_len in 1usize..90, extra in 0usize..90, kv_heads in 1usize..4, group in 1usize..4, head_dim in 1usize..40, kind in 0usize..3, cut in 0usize..90, biased: bool, weighted: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let kv_len = if kind == 2 { q_len } else { q_len + extra };
        let weights = weights(kv_len);
        let segments = [0, cut.min(q_len), q_len];
        let mask = || WeightedMask {
            mask: [Mask::Full, Mask::Causal, Mask::Segments(&segments)][kind],
            key_weights: weighted.then_some(&weights[..]),
        };
        attend(heads, q_len, kv_len, mask, biased)?;
    }

    #[test]
    fn received_attentions(q_len in 1usize..300, extra in 0usize..90, kv_heads in 1usize..4, group in 1usize..4, head_dim in 1usize..40, kind in 0usize..4, cut in 0usize..90, weighted: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let kv_len = if kind == 2 { q_len } else { q_len + extra };
        let segments = [0, cut.min(q_len), q_len];
        let ranges: Vec<_> = (0..q_len).map(|i| i.saturating_sub(cut)..i + extra.min(cut) + 1).collect();
        let mask = [Mask::Full, Mask::Causal, Mask::Segments(&segments), Mask::Ranges(&ranges)][kind];
        let weights = weights(kv_len);
        receive(heads, q_len, kv_len, WeightedMask { mask, key_weights: weighted.then_some(&weights[..]) })?;
    }

    /// The layout of keys whose heads have one dimension is ambiguous.
    #[test]
    fn received_attentions_of_one_dimension(q_len in 1usize..9, extra in 0usize..9, kv_heads in 1usize..4, group in 1usize..4) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim: 1 };
        receive(heads, q_len, q_len + extra, WeightedMask { mask: Mask::Full, key_weights: None })?;
    }

    /// Prefill in pieces and token by token agrees with one causal pass.
    #[test]
    fn cached_attentions(first in 1usize..40, second in 1usize..5, steps in 0usize..4, kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..33, biased: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let pieces: Vec<usize> = [first, second].into_iter().chain(std::iter::repeat_n(1, steps)).collect();
        attend_cached(heads, &pieces, biased)?;
    }

    /// A layer of the cache may hold fewer positions than another: each attends to its own.
    #[test]
    fn layers_of_different_lengths(first in 1usize..60, less in 0usize..40, steps in 1usize..4, kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..33, cut in 0usize..60) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let lens = [first, first - less.min(first - 1)];
        layers_of(heads, lens, steps, cut)?;
    }
}

/// Fills two layers with `lens` tokens, continues both by `steps` tokens and compares attention with that
/// over the tokens of each layer, and the weights of the last token for the keys from `cut` on.
fn layers_of(
    heads: Heads,
    lens: [usize; 2],
    steps: usize,
    cut: usize,
) -> Result<(), TestCaseError> {
    let (q_width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    let scale = (heads.head_dim as f32).powf(-0.5);
    for quantized in [false, true] {
        let shape = CacheShape {
            layers: 2,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            capacity: lens[0],
            quantized,
        };
        let cache = G::kv_cache(shape, &Default::default()).expect("memory");
        let mut cache = cache.with_products(Products::Plain);
        let tokens = lens.map(|len| random([len + steps, q_width + 2 * kv_width]));
        let attend = |cache: &mut _, layer: usize, from: usize, count: usize| {
            let piece = gpu(&tokens[layer].clone().narrow(0, from, count));
            cached_attention::<G>(piece, heads, cache, layer, Mask::Causal, None, scale)
        };
        for (layer, &len) in lens.iter().enumerate() {
            attend(&mut cache, layer, 0, len);
            cache.advance_layers(layer..layer + 1, len);
        }
        cache.grow(lens[0] + steps).expect("memory");
        let mut cache = cache.fork().expect("memory");
        let last = [0, 1].map(|layer| attend(&mut cache, layer, lens[layer], steps));
        cache.advance(steps);
        for (layer, found) in last.into_iter().enumerate() {
            prop_assert_eq!(cache.len_of(layer), lens[layer] + steps);
            let part = |column: usize, width: usize| tokens[layer].clone().narrow(1, column, width);
            let (q, k) = (part(0, q_width), part(q_width, kv_width));
            let v = part(q_width + kv_width, kv_width);
            let mut error = attention_error(&q, &k, &v, heads);
            // Bounds of the weights' relative error.
            let sizes = largest(q.clone()) * largest(k.clone()) * heads.head_dim as f32 * scale;
            let mut bound = 4.0 * exp_error(2.0 * sizes) + 1e-5;
            if quantized {
                error += half_error(&q, &k, &v, heads);
                bound += 2.0 * (sizes / 2048.0).exp_m1();
            }
            let (mask, q_last) = (Mask::Causal, q.clone().narrow(0, lens[layer], steps));
            let expected = reference::attention(q_last, k.clone(), v, heads, mask, None, scale);
            close(found, expected, error)?;

            let keys = cut.min(cache.len_of(layer) - 1)..cache.len_of(layer);
            let row = q.narrow(0, keys.end - 1, 1);
            let found = attention_row::<G>(gpu(&row), heads, &cache, layer, keys.clone(), scale);
            let k = k.narrow(0, keys.start, keys.len());
            let expected = reference::attention_row(row, k, heads, scale);
            let found = cpu(found);
            prop_assert_eq!(found.dims(), expected.dims());
            let excess = largest_excess(found, expected, bound);
            prop_assert!(excess <= 1e-7, "weights are off by {excess}");
        }
        cache.truncate(1);
        let left = (lens[1] + steps).saturating_sub(lens[0] + steps - 1);
        prop_assert_eq!((cache.len_of(0), cache.len_of(1)), (1, left));
    }
    Ok(())
}

/// Returns the largest error beyond `bound` times the expected value.
fn largest_excess(found: Tensor<C, 2>, expected: Tensor<C, 2>, bound: f32) -> f32 {
    let error = (found - expected.clone()).abs();
    (error - expected * bound).max().into_scalar()
}

fn product(
    format: Format,
    tokens: usize,
    rows: usize,
    cols: usize,
    act: usize,
    bias: bool,
    residual: bool,
) -> Result<(), TestCaseError> {
    let (x, weight) = (random([tokens, cols]), Weight::random(format, rows, cols));
    let bias = bias.then(|| random([rows]));
    let residual = residual.then(|| random([tokens, rows]));
    let found = linear(
        gpu(&x),
        weight.gpu,
        weight.shape,
        bias.as_ref().map(gpu),
        ACTIVATIONS[act],
        residual.as_ref().map(gpu),
    );
    let error = product_error(&x, &weight.dense);
    let before = reference::linear(
        x.clone(),
        weight.dense.clone(),
        bias.clone(),
        Activation::None,
        None,
    );
    let bound = activation_error(error + ROUNDING, largest(before));
    let expected = reference::linear(x, weight.dense, bias, ACTIVATIONS[act], residual);
    close(found, expected, bound)
}

/// Error bound of attention: rounding errors of the scores, of the exponential and of the sums over
/// keys.
fn attention_error(q: &Tensor<C, 2>, k: &Tensor<C, 2>, v: &Tensor<C, 2>, heads: Heads) -> f32 {
    let d = heads.head_dim as f32;
    let score = largest(q.clone()) * largest(k.clone()) * d.sqrt();
    let weights = 2.0 * d * ROUNDING * score + exp_error(2.0 * score);
    2.0 * largest(v.clone()) * (weights + k.dims()[0] as f32 * ROUNDING)
}

/// Weights of keys, from that of a tenth of a token to that of dozens.
fn weights(len: usize) -> Vec<f32> {
    random([len])
        .mul_scalar(1.5)
        .exp()
        .to_data()
        .to_vec()
        .unwrap()
}

/// Additional error of scores with the logarithms of weights: a rounding error of each, and the error of
/// the exponential of a difference that is larger by that of the logarithms.
fn weights_error(v: &Tensor<C, 2>, weights: &[f32]) -> f32 {
    let largest_log = weights
        .iter()
        .fold(0f32, |largest, weight| largest.max(weight.ln().abs()));
    2.0 * largest(v.clone()) * (2.0 * ROUNDING * largest_log + exp_error(2.0 * largest_log))
}

fn receive(
    heads: Heads,
    q_len: usize,
    kv_len: usize,
    mask: WeightedMask<'_>,
) -> Result<(), TestCaseError> {
    let (q, k) = (
        random([q_len, heads.heads * heads.head_dim]),
        random([kv_len, 3 + heads.kv_heads * heads.head_dim]),
    );
    let scale = (heads.head_dim as f32).powf(-0.5);
    let columns = Columns {
        tensor: gpu(&k),
        column: 3,
    };
    let found = attention_received(gpu(&q), columns, heads, mask, scale);
    let k = k.narrow(1, 3, heads.kv_heads * heads.head_dim);
    // The error of a mean of probabilities is that of attention to values of 1.
    let one = Tensor::ones([kv_len, 1], &Default::default());
    let bound = attention_error(&q, &k, &one, heads)
        + weights_error(&one, mask.key_weights.unwrap_or(&[1.0]))
        + (q_len * heads.heads) as f32 * ROUNDING;
    let expected = reference::attention_received(q, k, heads, mask, scale);
    let bound = bound * largest(expected.clone());
    close(found, expected, bound)
}

fn attend<'a, M: Into<WeightedMask<'a>>>(
    heads: Heads,
    q_len: usize,
    kv_len: usize,
    mask: impl Fn() -> M,
    biased: bool,
) -> Result<(), TestCaseError> {
    let (q_width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    let (q, kv) = (random([q_len, q_width]), random([kv_len, 2 * kv_width]));
    let bias = biased.then(|| random([heads.heads, q_len, kv_len]));
    let scale = (heads.head_dim as f32).powf(-0.5);
    let both = gpu(&kv);
    let found = attention(
        gpu(&q),
        both.clone(),
        Columns {
            tensor: both,
            column: kv_width,
        },
        heads,
        mask(),
        bias.as_ref().map(gpu),
        scale,
    );
    let (k, v) = (
        kv.clone().narrow(1, 0, kv_width),
        kv.narrow(1, kv_width, kv_width),
    );
    let weights = mask().into().key_weights.unwrap_or(&[1.0]);
    let bound = attention_error(&q, &k, &v, heads) + weights_error(&v, weights);
    let expected = reference::attention(q, k, v, heads, mask(), bias, scale);
    close(found, expected, bound)
}

fn attend_cached(heads: Heads, pieces: &[usize], biased: bool) -> Result<(), TestCaseError> {
    let (q_width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    let total: usize = pieces.iter().sum();
    let qkv = random([total, q_width + 2 * kv_width]);
    let bias = biased.then(|| random([heads.heads, total, total]));
    let scale = (heads.head_dim as f32).powf(-0.5);
    let shape = CacheShape {
        layers: 2,
        kv_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        capacity: pieces[0],
        quantized: false,
    };
    let mut cache = G::kv_cache(shape, &Default::default()).expect("memory");
    let (all, mut found, mut start) = (gpu(&qkv), Vec::new(), 0);
    for &tokens in pieces {
        cache.grow(start + tokens).expect("memory");
        let piece = all.clone().narrow(0, start, tokens);
        let bias = bias.as_ref().map(|bias| {
            let bias = bias.clone().narrow(1, start, tokens);
            gpu(&bias.narrow(2, 0, start + tokens))
        });
        cached_attention::<G>(
            piece.clone() * 0.5,
            heads,
            &mut cache,
            0,
            Mask::Causal,
            None,
            scale,
        );
        found.push(cached_attention::<G>(
            piece,
            heads,
            &mut cache,
            1,
            Mask::Causal,
            bias,
            scale,
        ));
        cache.advance(tokens);
        start += tokens;
    }
    prop_assert_eq!(cache.len(), total);
    let part = |column: usize, width: usize| qkv.clone().narrow(1, column, width);
    let (q, k, v) = (
        part(0, q_width),
        part(q_width, kv_width),
        part(q_width + kv_width, kv_width),
    );
    let bound = attention_error(&q, &k, &v, heads);
    let expected = reference::attention(q, k, v, heads, Mask::Causal, bias, scale);
    close(Tensor::cat(found, 0), expected, bound)
}

/// Head sizes of real models, with whole tiles and with several windows.
#[test]
fn heads_of_real_models() {
    for head_dim in [64, 72, 80, 88, 96, 128, 256] {
        let heads = Heads {
            heads: 4,
            kv_heads: 2,
            head_dim,
        };
        attend(heads, 70, 70, || Mask::Causal, false).unwrap();
        attend(
            heads,
            70,
            70,
            || Mask::Segments(&[0, 16, 16, 64, 70]),
            false,
        )
        .unwrap();
        let weights = weights(70);
        let weighted = WeightedMask {
            mask: Mask::Segments(&[0, 16, 16, 64, 70]),
            key_weights: Some(&weights),
        };
        attend(heads, 70, 70, || weighted, false).unwrap();
        receive(heads, 70, 70, weighted).unwrap();
    }
}

/// Heads that fit no tile are computed by the reference implementation, and a cache for them is refused.
#[test]
fn heads_that_are_too_large() {
    let heads = Heads {
        heads: 2,
        kv_heads: 1,
        head_dim: 600,
    };
    attend(heads, 5, 7, || Mask::Causal, true).unwrap();
    let weighted = WeightedMask {
        mask: Mask::Full,
        key_weights: Some(&[0.1, 1.0, 2.0, 30.0, 1.0, 1.0, 4.0]),
    };
    attend(heads, 5, 7, || weighted, false).unwrap();
    receive(heads, 5, 7, weighted).unwrap();
    let shape = CacheShape {
        layers: 1,
        kv_heads: 1,
        head_dim: 600,
        capacity: 4,
        quantized: false,
    };
    let error = G::kv_cache(shape, &Default::default())
        .err()
        .expect("an error");
    assert!(error.to_string().contains("600"), "{error}");
    let shape = CacheShape {
        head_dim: 64,
        capacity: 1 << 40,
        ..shape
    };
    let error = G::kv_cache(shape, &Default::default())
        .err()
        .expect("an error");
    assert!(error.to_string().contains("shorter context"), "{error}");
}

fn argmax_on<B: KernelBackend>(scores: &[f32]) -> Option<u32> {
    let data = TensorData::new(scores.to_vec(), [1, scores.len()]);
    argmax(Tensor::<B, 2>::from_data(data, &Default::default())).expect("a result")
}

/// Argmax is the same on every device: the first among equals, also with several cubes, and none if a
/// score is NaN.
#[test]
fn the_argmax() {
    let agree = |scores: &[f32]| {
        let expected = argmax_on::<C>(scores);
        assert_eq!(argmax_on::<G>(scores), expected, "of {}", scores.len());
        expected
    };
    for len in [1, 2, 255, 256, 257, 1023, 1025, 5000, 151_937] {
        let mut scores = random([1, len]).to_data().to_vec::<f32>().unwrap();
        let best = agree(&scores).expect("numbers") as usize;
        // Equal scores after and before.
        scores[len - 1] = scores[best];
        assert_eq!(agree(&scores), Some(best as u32));
        scores[0] = scores[best];
        assert_eq!(agree(&scores), Some(0));
        scores[len / 2] = f32::NAN;
        assert_eq!(agree(&scores), None);
    }
    assert_eq!(agree(&[-3.0, -1.0, -1.0, -2.0]), Some(1));
    assert_eq!(agree(&[-0.0, 0.0]), Some(0));
    assert_eq!(agree(&[-1.0, 0.0, -0.0]), Some(1));
    let infinite = f32::INFINITY;
    assert_eq!(agree(&[-infinite, 1.0]), Some(1));
    assert_eq!(agree(&[1.0, f32::MAX]), Some(1));
    assert_eq!(agree(&[-infinite, -infinite]), None);
    assert_eq!(agree(&[1.0, infinite, f32::MAX]), None);
    assert_eq!(agree(&[1.0, -f32::NAN]), None);
}

/// Additional error of half precision, besides [`attention_error`]: 2^-11 for operands and attention
/// weights.
fn half_error(q: &Tensor<C, 2>, k: &Tensor<C, 2>, v: &Tensor<C, 2>, heads: Heads) -> f32 {
    let dot = largest(q.clone()) * largest(k.clone()) * heads.head_dim as f32;
    let score = dot * (heads.head_dim as f32).powf(-0.5);
    2.0 * largest(v.clone()) * (2.0 * score + 3.0) / 2048.0
}

/// Attention by emulated tensor cores: all head sizes of the supported models, all tiles, windows, and
/// keys in parts.
#[test]
fn attention_by_fragments() {
    let (full, causal, segments) = (0, 1, 2);
    for (head_dim, tokens, group, kind) in [
        (64, 70, 1, full),
        (64, 70, 1, causal),
        (72, 40, 2, segments),
        (80, 130, 1, segments),
        (88, 33, 1, full),
        (96, 20, 3, causal),
        (128, 65, 1, full),
        (20, 9, 1, causal),
        (64, 300, 1, full),
    ] {
        let heads = Heads {
            heads: 2 * group,
            kv_heads: 2,
            head_dim,
        };
        let (width, kv_width) = (heads.heads * head_dim, 2 * head_dim);
        let qkv = random([tokens, width + 2 * kv_width]);
        let part = |column: usize, width: usize| qkv.clone().narrow(1, column, width);
        let (q, k) = (part(0, width), part(width, kv_width));
        let v = part(width + kv_width, kv_width);
        let scale = (head_dim as f32).powf(-0.5);
        let error = attention_error(&q, &k, &v, heads) + half_error(&q, &k, &v, heads);
        let ends = [0, tokens / 3, tokens / 3, tokens];
        let mask = || match kind {
            0 => Mask::Full,
            1 => Mask::Causal,
            _ => Mask::Segments(&ends),
        };
        let weights = weights(tokens);
        for key_weights in [None, Some(&weights[..])] {
            let mask = WeightedMask {
                mask: mask(),
                key_weights,
            };
            let found = cube::attention_by(gpu(&qkv), heads, mask, scale, Products::Emulated);
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            let error = error + weights_error(&v, key_weights.unwrap_or(&[1.0]));
            let expected = reference::attention(q, k, v, heads, mask, None, scale);
            close(found, expected, error).unwrap();
        }
    }
}

/// Keys and values in half precision, if the device supports it: prefill, also by fragments, then decoding
/// steps.
#[test]
fn a_cache_in_half_precision() {
    let heads = Heads {
        heads: 6,
        kv_heads: 2,
        head_dim: 40,
    };
    let (width, kv_width) = (240, 80);
    let pieces = [150, 30, 1, 2];
    let total = pieces.iter().sum();
    let qkv = random([total, width + 2 * kv_width]);
    let bias = random([6, total, total]);
    let scale = 40f32.powf(-0.5);
    let shape = CacheShape {
        layers: 1,
        kv_heads: 2,
        head_dim: 40,
        capacity: total,
        quantized: true,
    };
    for products in [Products::Plain, Products::Emulated] {
        let cache = G::kv_cache(shape, &Default::default()).expect("memory");
        let mut cache = cache.with_products(products);
        assert!([1, 2].contains(&(shape.bytes() / cache.bytes())));
        let (mut found, mut start) = (Vec::new(), 0);
        for tokens in pieces {
            let piece = gpu(&qkv.clone().narrow(0, start, tokens));
            let bias = bias.clone().narrow(1, start, tokens);
            let bias = gpu(&bias.narrow(2, 0, start + tokens));
            found.push(cached_attention::<G>(
                piece,
                heads,
                &mut cache,
                0,
                Mask::Causal,
                Some(bias),
                scale,
            ));
            cache.advance(tokens);
            start += tokens;
        }
        let part = |column: usize, width: usize| qkv.clone().narrow(1, column, width);
        let (q, k) = (part(0, width), part(width, kv_width));
        let v = part(width + kv_width, kv_width);
        let error = attention_error(&q, &k, &v, heads) + half_error(&q, &k, &v, heads);
        let bias = Some(bias.clone());
        let expected = reference::attention(q, k, v, heads, Mask::Causal, bias, scale);
        close(Tensor::cat(found, 0), expected, error).unwrap();
    }
}

/// With one query and many keys, the keys are divided among cubes and the partial results are merged.
#[test]
fn one_query_of_many_keys() {
    let heads = Heads {
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
    };
    attend_cached(heads, &[700, 1, 1], false).unwrap();
    attend_cached(heads, &[300, 2, 1], true).unwrap();
    attend(heads, 3, 1000, || Mask::Full, true).unwrap();
    let weights = weights(1000);
    let weighted = WeightedMask {
        mask: Mask::Full,
        key_weights: Some(&weights),
    };
    attend(heads, 3, 1000, || weighted, false).unwrap();
    receive(heads, 3, 1000, weighted).unwrap();
}

#[test]
fn a_table_of_dense_rows() {
    let table = random([7, 5]);
    let ids = [6, 0, 6, 3];
    close(
        select_rows(gpu(&table), &ids),
        select_rows(table, &ids),
        0.0,
    )
    .unwrap();
}

#[test]
fn a_shared_residual_is_not_changed() {
    let (x, residual) = (random([2, 8]), random([2, 4]));
    let weight = Weight::random(Format::F32, 4, 8);
    let held = gpu(&residual);
    linear(
        gpu(&x),
        weight.gpu,
        weight.shape,
        None,
        Activation::None,
        Some(held.clone()),
    );
    close(held, residual, 0.0).unwrap();
}

/// Operands that are views of other tensors.
#[test]
fn views() {
    let (x, weight) = (random([9, 40]), Weight::random(Format::Q8, 16, 12));
    let part = |x: Tensor<C, 2>| x.narrow(0, 2, 6).narrow(1, 5, 12);
    let view = gpu(&x).narrow(0, 2, 6).narrow(1, 5, 12);
    let bound = product_error(&part(x.clone()), &weight.dense);
    let found = linear(
        view,
        weight.gpu.clone(),
        weight.shape,
        None,
        Activation::None,
        None,
    );
    close(
        found,
        part(x).matmul(weight.dense.clone().transpose()),
        bound,
    )
    .unwrap();
    let x = random([12, 7]);
    let bound = product_error(&x.clone().transpose(), &weight.dense);
    let found = linear(
        gpu(&x).transpose(),
        weight.gpu,
        weight.shape,
        None,
        Activation::None,
        None,
    );
    close(found, x.transpose().matmul(weight.dense.transpose()), bound).unwrap();
}

/// Tensor cores, or their emulation on devices without them, agree with multiply-adds up to the rounding
/// of operands to half precision: a relative error of 2^-11 per operand.
#[test]
fn all_kinds_of_products_agree() {
    for (format, [tokens, rows, cols]) in [
        (Format::Q4, [100, 70, 96]),
        (Format::Q8, [64, 64, 64]),
        (Format::F16, [65, 129, 40]),
        (Format::Q4, [5, 9, 33]),
    ] {
        let (x, weight) = (random([tokens, cols]), Weight::random(format, rows, cols));
        let dense = weight.dense.clone();
        let sizes = x.clone().abs().matmul(dense.clone().abs().transpose());
        let exact = product_error(&x, &dense);
        let half = largest(sizes) / 1024.0 + exact;
        let expected = x.clone().matmul(dense.transpose());
        let x = gpu(&x);
        for products in [cube::products(&x), Products::Plain, Products::Emulated] {
            let bound = match products {
                Products::Plain => exact,
                Products::Matrix | Products::Emulated => half,
            };
            let found = cube::multiply(x.clone(), weight.gpu.clone(), weight.shape, products);
            close(found, expected.clone(), bound).unwrap();
        }
    }
}

/// One kernel for a few tokens if both halves begin with a panel, otherwise two.
#[test]
fn gated_products() {
    for format in Format::ALL {
        for (tokens, half, cols) in [(1, 16, 70), (4, 8, 33), (3, 12, 64), (6, 16, 40)] {
            let (x, weight) = (
                random([tokens, cols]),
                Weight::random(format, 2 * half, cols),
            );
            let error = product_error(&x, &weight.dense);
            let before = x.clone().matmul(weight.dense.clone().transpose());
            let size = largest(before.clone());
            let expected = reference::gated(before, Activation::Silu);
            let found = gated_linear(gpu(&x), weight.gpu, weight.shape, Activation::Silu);
            let bound = size * (activation_error(error, size) + error) + 2.0 * ROUNDING;
            close(found, expected, bound).unwrap();
        }
    }
}

/// Rotation while keys are appended to the cache agrees with rotation beforehand.
#[test]
fn rotated_attentions() {
    for (head_dim, half, group, pieces, window) in [
        (16, 8, 2, [7, 1, 1], None),
        (20, 6, 1, [40, 3, 1], None),
        (20, 6, 1, [40, 3, 1], Some(11)),
        (64, 32, 6, [3, 1, 2], Some(2)),
    ] {
        let heads = Heads {
            heads: 2 * group,
            kv_heads: 2,
            head_dim,
        };
        let (width, kv_width) = (heads.heads * head_dim, 2 * head_dim);
        let total: usize = pieces.iter().sum();
        let qkv = random([total, width + 2 * kv_width]);
        let (cos, sin) = (random([total, half]), random([total, half]));
        let shape = CacheShape {
            layers: 1,
            kv_heads: 2,
            head_dim,
            capacity: total,
            quantized: false,
        };
        let mut cache = G::kv_cache(shape, &Default::default()).expect("memory");
        let (mut found, mut start) = (Vec::new(), 0);
        for tokens in pieces {
            let piece = |x: &Tensor<C, 2>| gpu(&x.clone().narrow(0, start, tokens));
            let held = piece(&qkv);
            let scale = (head_dim as f32).powf(-0.5);
            let ranges = window.map(|window| ranges(start, tokens, window));
            let mask = ranges.as_deref().map_or(Mask::Causal, Mask::Ranges);
            let (cos, sin) = (piece(&cos), piece(&sin));
            // A cache of another capacity is filled with the same keys and values.
            let (mut bytes, mut again) = (Vec::new(), Vec::new());
            cache.export(start, &mut bytes).expect("bytes");
            let larger = CacheShape {
                capacity: total + 9,
                ..shape
            };
            let mut other = G::kv_cache(larger, &Default::default()).expect("memory");
            assert_eq!(other.import(&bytes), Ok(start));
            other.export(start, &mut again).expect("bytes");
            assert_eq!(bytes, again);
            let values = &bytes[bytes.len() / 2..];
            assert!(start == 0 || values.iter().any(|&byte| byte != 0));
            // Keys of a fork do not reach the cache that it was made of.
            let mut fork = cache.fork().expect("memory");
            assert_eq!((fork.len(), fork.capacity()), (start, total));
            let other = held.clone() * -2.0;
            rotated_attention::<G>(other, heads, &cos, &sin, &mut fork, 0, mask, scale);
            let own = held.clone();
            found.push(rotated_attention::<G>(
                own, heads, &cos, &sin, &mut cache, 0, mask, scale,
            ));
            // The tensor has another owner, so it must not change.
            close(held, qkv.clone().narrow(0, start, tokens), 0.0).unwrap();
            cache.advance(tokens);
            start += tokens;
        }
        let part = |column: usize, width: usize| qkv.clone().narrow(1, column, width);
        let turn = |x: Tensor<C, 2>, count: usize| {
            reference::rope(x, count, head_dim, cos.clone(), sin.clone())
        };
        let q = turn(part(0, width), heads.heads);
        let k = turn(part(width, kv_width), 2);
        let v = part(width + kv_width, kv_width);
        let bound = attention_error(&q, &k, &v, heads);
        let scale = (head_dim as f32).powf(-0.5);
        let ranges = window.map(|window| ranges(0, total, window));
        let mask = ranges.as_deref().map_or(Mask::Causal, Mask::Ranges);
        let expected = reference::attention(q, k, v, heads, mask, None, scale);
        close(Tensor::cat(found, 0), expected, bound).unwrap();
    }
}

/// The keys that queries from position `start` on see through a sliding window.
fn ranges(start: usize, queries: usize, window: usize) -> Vec<std::ops::Range<usize>> {
    let end = start + 1..start + queries + 1;
    end.map(|end| end.saturating_sub(window)..end).collect()
}

/// A failed allocation is reported with its size, and later operations work again.
#[test]
fn memory_that_cannot_be_had() {
    cube::memory::watch();
    let device = Default::default();
    let largest = WgpuRuntime::client(&device)
        .properties()
        .memory
        .max_page_size;
    let asked = 2 * largest as usize;
    let scores = Tensor::<G, 2>::empty([1, asked / 4], &device);
    // The result is invalid, whether it is an error or not.
    let _ = argmax(scores);
    let failure = G::memory_failure(&device).expect("a failure");
    assert_eq!(failure.asked, Some(asked as u64));
    assert!(
        failure.to_string().contains(&asked.to_string()),
        "{failure}"
    );
    assert_eq!(G::memory_failure(&device), None);
    assert_eq!(argmax_on::<G>(&[1.0, 3.0, 2.0]), Some(1));
}

/// Every kernel runs once, in measurable time.
#[test]
fn trials() {
    let trials =
        cube::trials::<WgpuRuntime>(&gpu(&random([1, 1])).device(), 64, 8).expect("trials");
    assert!(trials.len() > 15, "{trials:?}");
    assert!(
        trials
            .iter()
            .all(|trial| trial.bytes > 0 && !trial.call.is_zero())
    );
}
