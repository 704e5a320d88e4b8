//! The CPU operations against the reference implementation, on random shapes.

use burn::tensor::{Distribution, Int, Tensor, TensorData};
use burn_ndarray::NdArray;
use edge_lmm_kernels::pack::pack_rows;
use edge_lmm_ops::{
    Activation, CacheShape, Columns, DeltaHeads, DeltaRule, Format, Heads, KernelBackend, Mask,
    MatrixShape, RowSums, WeightedMask, attention, attention_received, attention_row,
    cached_attention, encoder_attention, gated, gated_delta_rule, gather_rows, layer_norm, linear,
    reference, rms_norm, rope, rotated_attention, select_rows, short_conv, sum_heads, sum_rows,
};
use proptest::prelude::*;

type B = NdArray<f32, i64, i8>;

const ACTIVATIONS: [Activation; 6] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
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

fn pack(weight: &Tensor<B, 2>, format: Format) -> (Tensor<B, 1, Int>, MatrixShape) {
    let [rows, cols] = weight.dims();
    let shape = MatrixShape { format, rows, cols };
    let mut bytes = Vec::new();
    pack_rows(
        shape,
        &weight.to_data().to_vec::<f32>().unwrap(),
        &mut bytes,
    )
    .unwrap();
    let len = bytes.len();
    let data = TensorData::new(bytes, [len]);
    let dtype = data.dtype;
    let device = Default::default();
    (Tensor::from_data(data, (&device, dtype)), shape)
}

/// Norm of the difference relative to the norm of the expected result.
fn distance<const D: usize>(found: Tensor<B, D>, expected: Tensor<B, D>) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let norm = |x: Tensor<B, D>| x.powi_scalar(2).sum().into_scalar().sqrt();
    norm(found - expected.clone()) / norm(expected).max(f32::MIN_POSITIVE)
}

/// Error of f32 sums of up to a few hundred products in another order: n * 2^-24, plus the error of the
/// approximations of exp and erf in activations.
const REORDERED: f32 = 2e-5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn dense_linear(tokens in 1usize..9, rows in 1usize..50, cols in 1usize..90, act in 0usize..6, bias: bool, residual: bool) {
        let (x, w) = (random([tokens, cols]), random([rows, cols]));
        let bias = bias.then(|| random([rows]));
        let residual = residual.then(|| random([tokens, rows]));
        let (packed, shape) = pack(&w, Format::F32);
        let found = linear(x.clone(), packed, shape, bias.clone(), ACTIVATIONS[act], residual.clone());
        let expected = reference::linear(x, w, bias, ACTIVATIONS[act], residual);
        // Relu can zero almost all elements, so the norm before it is compared, too.
        let size = (cols as f32).sqrt();
        let difference = (found - expected.clone()).abs().max().into_scalar();
        prop_assert!(difference <= REORDERED * size.max(expected.abs().max().into_scalar()), "{difference}");
    }

    /// Compares with a dense product with the dequantized weight. Activations are rounded to int8, with
    /// independent errors of at most amax / 254.
    #[test]
    fn quantized_linear(tokens in 1usize..9, rows in 1usize..50, cols in 1usize..200, q4: bool) {
        let format = if q4 { Format::Q4 } else { Format::Q8 };
        let (x, w) = (random([tokens, cols]), random([rows, cols]));
        let (packed, shape) = pack(&w, format);
        let ids: Vec<u32> = (0..rows as u32).collect();
        let dequantized = gather_rows::<B>(packed.clone(), shape, &ids);
        let found = linear(x.clone(), packed, shape, None, Activation::None, None);
        let expected = reference::linear(x.clone(), dequantized.clone(), None, Activation::None, None);
        let amax = x.abs().max().into_scalar();
        let norms = dequantized.abs().sum_dim(1).max().into_scalar();
        let bound = amax / 254.0 * norms * 1.001 + 1e-5;
        prop_assert!((found - expected).abs().max().into_scalar() <= bound);
    }

    #[test]
    fn norms(tokens in 1usize..6, width in 2usize..300) {
        let x = random([tokens, width]) * 3.0 + 0.5;
        let (gamma, beta) = (random([width]), random([width]));
        let rms = rms_norm(x.clone(), gamma.clone(), 1e-6);
        prop_assert!(distance(rms, reference::rms_norm(x.clone(), gamma.clone(), 1e-6)) < REORDERED);
        let layer = layer_norm(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        prop_assert!(distance(layer, reference::layer_norm(x, gamma, beta, 1e-5)) < 10.0 * REORDERED);
    }

    #[test]
    fn gates(tokens in 1usize..6, width in 1usize..70, act in 0usize..6) {
        let x = random([tokens, 2 * width]);
        let found = gated(x.clone(), ACTIVATIONS[act]);
        let difference = (found - reference::gated(x, ACTIVATIONS[act])).abs().max().into_scalar();
        prop_assert!(difference < REORDERED, "{difference}");
    }

    #[test]
    fn rotations(tokens in 1usize..6, heads in 1usize..5, half in 1usize..20, rest in 0usize..5, column in 0usize..9) {
        let head_dim = 2 * half + rest;
        let width = heads * head_dim;
        let x = random([tokens, column + width + 3]);
        let (cos, sin) = (random([tokens, half]), random([tokens, half]));
        let found = rope(x.clone(), column, heads, head_dim, &cos, &sin);
        let rotated = reference::rope(x.clone().narrow(1, column, width), heads, head_dim, cos, sin);
        prop_assert!(distance(found.clone().narrow(1, column, width), rotated) < REORDERED);
        // Columns outside of the heads are unchanged.
        let after = column + width;
        prop_assert_eq!(found.clone().narrow(1, after, 3).to_data(), x.clone().narrow(1, after, 3).to_data());
        if column > 0 {
            prop_assert_eq!(found.narrow(1, 0, column).to_data(), x.narrow(1, 0, column).to_data());
        }
    }

    #[test]
    fn attentions(q_len in 1usize..40, extra in 0usize..40, kv_heads in 1usize..4, group in 1usize..4, head_dim in 1usize..40, kind in 0usize..3, cut in 0usize..40, biased: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let kv_len = if kind == 2 { q_len } else { q_len + extra };
        let (q_width, kv_width) = (heads.heads * head_dim, kv_heads * head_dim);
        let (q, kv) = (random([q_len, q_width]), random([kv_len, 2 * kv_width]));
        let bias = biased.then(|| random([heads.heads, q_len, kv_len]));
        let segments = [0, cut.min(q_len), q_len];
        let mask = || match kind {
            0 => Mask::Full,
            1 => Mask::Causal,
            _ => Mask::Segments(&segments),
        };
        let scale = (head_dim as f32).powf(-0.5);
        let found = attention(
            q.clone(),
            kv.clone(),
            Columns { tensor: kv.clone(), column: kv_width },
            heads, mask(), bias.clone(), scale,
        );
        let (k, v) = (kv.clone().narrow(1, 0, kv_width), kv.narrow(1, kv_width, kv_width));
        let expected = reference::attention(q, k, v, heads, mask(), bias, scale);
        prop_assert!(distance(found, expected) < 2.0 * REORDERED);
    }

    /// Attention with weighted keys, in floats and, on machines with byte products, in integers. The
    /// latter rounds to 8 bits, so its error is compared with that of keys without weights.
    #[test]
    fn weighted_attentions(len in 1usize..80, kv_heads in 1usize..4, group in 1usize..4, size in 0usize..5, cut in 0usize..80) {
        let head_dim = [64, 72, 80, 88, 128][size];
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let (q_width, kv_width) = (heads.heads * head_dim, kv_heads * head_dim);
        let (q, k, v) = (random([len, q_width]), random([len, kv_width]), random([len, kv_width]));
        let weights = weights(len);
        let segments = [0, cut.min(len), len];
        let scale = (head_dim as f32).powf(-0.5);
        let (q, k, v) = (&q, &k, &v);
        let distances = [Some(&weights[..]), None].map(|key_weights| {
            let mask = WeightedMask { mask: Mask::Segments(&segments), key_weights };
            let operands = || (q.clone(), k.clone(), v.clone());
            let (q, k, v) = operands();
            let expected = reference::attention(q, k, v, heads, mask, None, scale);
            [false, true].map(|quantized| {
                let (q, k, v) = operands();
                let found = encoder_attention(q, k, v, heads, mask, scale, quantized);
                distance(found, expected.clone())
            })
        });
        let [[float, quantized], [_, unweighted]] = distances;
        prop_assert!(float < 2.0 * REORDERED, "{float}");
        prop_assert!(quantized < 3.0 * unweighted + 2.0 * REORDERED, "{quantized}, {unweighted}");
    }

    #[test]
    fn received_attentions(q_len in 1usize..60, extra in 0usize..60, kv_heads in 1usize..4, group in 1usize..4, head_dim in 1usize..40, kind in 0usize..4, cut in 0usize..60, weighted: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let kv_len = if kind == 2 { q_len } else { q_len + extra };
        let (q, k) = (random([q_len, heads.heads * head_dim]), random([kv_len, 3 + kv_heads * head_dim]));
        let segments = [0, cut.min(q_len), q_len];
        let ranges: Vec<_> = (0..q_len).map(|i| i.saturating_sub(cut)..i + extra.min(cut) + 1).collect();
        let mask = [Mask::Full, Mask::Causal, Mask::Segments(&segments), Mask::Ranges(&ranges)][kind];
        let weights = weights(kv_len);
        let mask = WeightedMask { mask, key_weights: weighted.then_some(&weights[..]) };
        let scale = (head_dim as f32).powf(-0.5);
        let key = Columns { tensor: k.clone(), column: 3 };
        let found = attention_received::<B>(q.clone(), key, heads, mask, scale);
        let k = k.narrow(1, 3, kv_heads * head_dim);
        let expected = reference::attention_received(q, k, heads, mask, scale);
        prop_assert!(distance(found, expected) < 2.0 * REORDERED);
    }

    /// Sums over heads, and sums of rows of which some are copies.
    #[test]
    fn sums_of_heads_and_rows(rows in 1usize..40, heads in 1usize..6, head_dim in 1usize..40, column in 0usize..7, terms in prop::collection::vec(prop::collection::vec((0usize..40, 0.1f32..1.0), 0..4), 1..30)) {
        let x = random([rows, column + heads * head_dim + 3]);
        let found = sum_heads::<B>(Columns { tensor: x.clone(), column }, heads, head_dim);
        let expected = reference::sum_heads(x.clone(), column, heads, head_dim);
        prop_assert!(distance(found, expected) < REORDERED);
        let mut sums = RowSums::default();
        for terms in terms {
            sums.push(terms.into_iter().map(|(row, weight)| (row % rows, weight)));
        }
        sums.push([(rows - 1, 1.0)]);
        let found = sum_rows::<B>(x.clone(), &sums);
        prop_assert!(distance(found, reference::sum_rows(x, &sums)) < REORDERED);
    }

    /// Prefill in pieces and token by token agrees with one causal pass.
    #[test]
    fn cached_attentions(first in 1usize..20, second in 1usize..5, steps in 0usize..4, kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..33, biased: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let (q_width, kv_width) = (heads.heads * head_dim, kv_heads * head_dim);
        let total = first + second + steps;
        let qkv = random([total, q_width + 2 * kv_width]);
        let bias = biased.then(|| random([heads.heads, total, total]));
        let scale = (head_dim as f32).powf(-0.5);
        let shape = CacheShape { layers: 2, kv_heads, head_dim, capacity: total, quantized: false };
        let mut cache = B::kv_cache(shape, &Default::default()).unwrap();
        let mut found = Vec::new();
        let mut start = 0;
        for tokens in [first, second].into_iter().chain(std::iter::repeat_n(1, steps)) {
            let piece = qkv.clone().narrow(0, start, tokens);
            let bias = bias.clone().map(|bias| bias.narrow(1, start, tokens).narrow(2, 0, start + tokens));
            cached_attention::<B>(piece.clone() * 0.5, heads, &mut cache, 0, Mask::Causal, None, scale);
            found.push(cached_attention::<B>(piece, heads, &mut cache, 1, Mask::Causal, bias, scale));
            cache.advance(tokens);
            start += tokens;
        }
        prop_assert_eq!(cache.len(), total);
        let part = |column: usize, width: usize| qkv.clone().narrow(1, column, width);
        let expected = reference::attention(
            part(0, q_width), part(q_width, kv_width), part(q_width + kv_width, kv_width),
            heads, Mask::Causal, bias, scale,
        );
        prop_assert!(distance(Tensor::cat(found, 0), expected) < 2.0 * REORDERED);
    }

    /// The weights of the last token of a prefill in pieces, rotated as the keys are, for all keys and
    /// for the last ones.
    #[test]
    fn weights_of_the_last_token(first in 1usize..200, second in 1usize..20, cut in 0usize..200, kv_heads in 1usize..3, group in 1usize..4, half in 1usize..17, quantized: bool) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim: 2 * half };
        let (q_width, kv_width) = (heads.heads * heads.head_dim, kv_heads * heads.head_dim);
        let total = first + second;
        let qkv = random([total, q_width + 2 * kv_width]);
        let (cos, sin) = (random([total, half]), random([total, half]));
        let scale = (heads.head_dim as f32).powf(-0.5);
        let shape = CacheShape { layers: 2, kv_heads, head_dim: heads.head_dim, capacity: total, quantized };
        let mut cache = B::kv_cache(shape, &Default::default()).unwrap();
        for (start, tokens) in [(0, first), (first, second)] {
            let piece = |x: &Tensor<B, 2>| x.clone().narrow(0, start, tokens);
            rotated_attention::<B>(piece(&qkv), heads, &piece(&cos), &piece(&sin), &mut cache, 1, Mask::Causal, scale);
            cache.advance_layers(1..2, tokens);
        }
        prop_assert_eq!((cache.len_of(0), cache.len_of(1)), (0, total));
        let last = |x: &Tensor<B, 2>| x.clone().narrow(0, total - 1, 1);
        let q = rope(last(&qkv), 0, heads.heads, heads.head_dim, &last(&cos), &last(&sin));
        let k = reference::rope(qkv.clone().narrow(1, q_width, kv_width), kv_heads, heads.head_dim, cos, sin);
        let keys = cut.min(total - 1)..total;
        let found = attention_row::<B>(q.clone(), heads, &cache, 1, keys.clone(), scale);
        let k = k.narrow(0, keys.start, keys.len());
        // Half precision rounds a key by at most 2^-11 of its size, hence a score by 2^-11 of the sum of
        // the sizes of its products, and a weight by twice that, relative to it.
        let q = q.narrow(1, 0, q_width);
        let sizes = q.clone().abs().max().into_scalar() * k.clone().abs().max().into_scalar() * heads.head_dim as f32 * scale;
        let bound = if quantized { 2.0 * (sizes / 2048.0).exp_m1() } else { 2e-4 };
        let expected = reference::attention_row(q, k, heads, scale);
        prop_assert_eq!(found.dims(), expected.dims());
        let excess = ((found - expected.clone()).abs() - expected * bound).max().into_scalar();
        prop_assert!(excess <= 1e-7, "{excess}");
    }
}

/// Random operands of the delta rule and a state.
fn delta_rule(heads: DeltaHeads, tokens: usize) -> (DeltaRule<B>, Tensor<B, 2>) {
    let rule = DeltaRule {
        heads,
        qkv: random([tokens, heads.width()]),
        gates: random([tokens, 2 * heads.value_heads]),
        decay_log: random([heads.value_heads]),
        decay_bias: random([heads.value_heads]),
        output_gate: Columns {
            tensor: random([tokens, heads.value_width() + 2]),
            column: 2,
        },
        gamma: random([heads.value_dim]),
        eps: 1e-6,
    };
    (rule, random(heads.state()))
}

/// Returns the operands of the tokens `range`.
fn part_of(rule: &DeltaRule<B>, range: std::ops::Range<usize>) -> DeltaRule<B> {
    let rows = |x: &Tensor<B, 2>| x.clone().narrow(0, range.start, range.len());
    DeltaRule {
        heads: rule.heads,
        qkv: rows(&rule.qkv),
        gates: rows(&rule.gates),
        decay_log: rule.decay_log.clone(),
        decay_bias: rule.decay_bias.clone(),
        output_gate: Columns {
            tensor: rows(&rule.output_gate.tensor),
            column: rule.output_gate.column,
        },
        gamma: rule.gamma.clone(),
        eps: rule.eps,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn short_convs(tokens in 1usize..20, channels in 1usize..40, taps in 1usize..6, column in 0usize..3, act in 0usize..6) {
        let x = random([tokens, column + channels + 1]);
        let (before, kernel) = (random([taps - 1, channels]), random([channels, taps]));
        let columns = Columns { tensor: x.clone(), column };
        let (found, after) = short_conv(columns, before.clone(), kernel.clone(), ACTIVATIONS[act]);
        let part = x.narrow(1, column, channels);
        let (expected, expected_after) = reference::short_conv(part, before, kernel, ACTIVATIONS[act]);
        let difference = (found - expected).abs().max().into_scalar();
        prop_assert!(difference < REORDERED, "{difference}");
        prop_assert_eq!(after.to_data(), expected_after.to_data());
    }

    /// The chunks of the reference against the kernels' recurrence. Chunks add and subtract sums of up to
    /// 64 tokens; the norm of an output that is short beside its state magnifies their error.
    #[test]
    fn delta_rules(tokens in 1usize..200, key_heads in 1usize..3, group in 1usize..4, key_dim in 1usize..30, value_dim in 1usize..30) {
        let heads = DeltaHeads { key_heads, value_heads: key_heads * group, key_dim, value_dim };
        let (rule, state) = delta_rule(heads, tokens);
        let whole = part_of(&rule, 0..tokens);
        let (expected, expected_state) = reference::gated_delta_rule(whole, state.clone());
        let (found, found_state) = gated_delta_rule(rule, state);
        let error = distance(found_state, expected_state);
        prop_assert!(error < REORDERED, "state {error}");
        let error = distance(found, expected);
        prop_assert!(error < 10.0 * REORDERED, "{error}");
    }

    /// The pieces of the reference end where they like.
    #[test]
    fn pieces_of_the_delta_rule(tokens in 2usize..150, cut in 1usize..150) {
        let heads = DeltaHeads { key_heads: 2, value_heads: 4, key_dim: 12, value_dim: 20 };
        let (rule, state) = delta_rule(heads, tokens);
        let cut = cut.min(tokens - 1);
        let whole = part_of(&rule, 0..tokens);
        let (expected, expected_state) = reference::gated_delta_rule(whole, state.clone());
        let (first, state) = reference::gated_delta_rule(part_of(&rule, 0..cut), state);
        let (second, state) = reference::gated_delta_rule(part_of(&rule, cut..tokens), state);
        let found = Tensor::cat(vec![first, second], 0);
        prop_assert!(distance(state, expected_state) < REORDERED);
        prop_assert!(distance(found, expected) < 10.0 * REORDERED);
    }
}

/// A text that repeats itself has equal keys: the terms of a power series of the inverse would exceed the
/// result by 17 orders of magnitude.
#[test]
fn equal_keys_do_not_cancel() {
    let heads = DeltaHeads {
        key_heads: 1,
        value_heads: 2,
        key_dim: 16,
        value_dim: 8,
    };
    let (mut rule, state) = delta_rule(heads, 64);
    rule.qkv = rule.qkv.narrow(0, 0, 1).repeat_dim(0, 64);
    // Updates are complete, and nothing decays.
    rule.gates = Tensor::cat(
        vec![
            Tensor::full([64, 2], 12.0, &Default::default()),
            Tensor::full([64, 2], -30.0, &Default::default()),
        ],
        1,
    );
    let (expected, expected_state) =
        reference::gated_delta_rule(part_of(&rule, 0..64), state.clone());
    let (found, found_state) = gated_delta_rule(rule, state);
    assert!(distance(found_state, expected_state) < REORDERED);
    assert!(distance(found, expected) < 10.0 * REORDERED);
}

#[test]
fn rows_of_a_table() {
    let table = random([7, 5]);
    let found = select_rows(table.clone(), &[6, 0, 6, 3]);
    let row = |i: usize| table.clone().narrow(0, i, 1);
    let expected = Tensor::cat(vec![row(6), row(0), row(6), row(3)], 0);
    assert_eq!(found.to_data(), expected.to_data());
}

#[test]
fn a_shared_residual_is_not_changed() {
    let (x, w, residual) = (random([2, 8]), random([4, 8]), random([2, 4]));
    let before = residual.to_data();
    let (packed, shape) = pack(&w, Format::F32);
    let kept = residual.clone();
    linear(x, packed, shape, None, Activation::None, Some(residual));
    assert_eq!(kept.to_data(), before);
}

/// Cases that the integer kernels do not support, heads that are too large and different numbers of
/// queries and keys, are computed in floats, bit for bit.
#[test]
fn quantized_encoders_take_every_size() {
    for (q_len, kv_len, head_dim) in [(3, 3, 1025), (5, 3, 8)] {
        let heads = Heads {
            heads: 1,
            kv_heads: 1,
            head_dim,
        };
        let (q, kv) = (random([q_len, head_dim]), random([kv_len, head_dim]));
        let (mask, scale) = (Mask::Full, 0.1);
        let (k, v) = (kv.clone(), kv.clone());
        let found = encoder_attention(q.clone(), k, v, heads, mask, scale, true);
        let expected = attention(q, kv.clone(), kv, heads, Mask::Full, None, scale);
        assert_eq!(found.to_data(), expected.to_data());
    }
}
