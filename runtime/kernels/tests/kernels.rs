//! The kernels of every instruction set of this machine against exact results or the portable kernels.

mod support;

use edge_lmm_kernels::cpu::{Kernels, Panels, Strided, Tile};
use edge_lmm_kernels::format::{FloatFormat, LEVELS, QuantFormat};
use edge_lmm_kernels::pack::pack_quants;
use edge_lmm_kernels::{Format, MatrixShape};
use half::f16;
use proptest::prelude::*;
use support::{Random, isas};

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// Quantized activations.
struct Quantized {
    quants: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

fn quantize(kernels: &dyn Kernels, format: QuantFormat, x: &[f32], tokens: usize) -> Quantized {
    let cols = x.len() / tokens;
    let (blocks, groups) = (tokens * cols.div_ceil(32), tokens * cols.div_ceil(128));
    let mut out = Quantized {
        quants: vec![0; blocks * 32],
        scales: vec![0.0; groups],
        offsets: vec![0; blocks],
    };
    for (t, x) in x.chunks(cols).enumerate() {
        let Quantized {
            quants,
            scales,
            offsets,
        } = &mut out;
        kernels.quantize(
            kernels.activation_scheme(format),
            x,
            &mut quants[t * 32..],
            &mut scales[t..],
            &mut offsets[t..],
            tokens,
        );
    }
    out
}

proptest! {
    #![proptest_config(support::cases(48))]

    #[test]
    fn quants_are_the_nearest(cols in 1usize..400, tokens in 1usize..5, exponent in -20i32..20, seed: u64) {
        let mut random = Random(seed);
        let x: Vec<f32> = random.normals(tokens * cols).into_iter().map(|x| x * 2f32.powi(exponent)).collect();
        for isa in isas() {
            let kernels = isa.kernels();
            for format in [QuantFormat::Q8, QuantFormat::Q4] {
                let scheme = kernels.activation_scheme(format);
                let q = quantize(kernels, format, &x, tokens);
                for (t, x) in x.chunks(cols).enumerate() {
                    let max = |g: usize| x.chunks(128).nth(g).unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
                    for (b, x) in x.chunks(32).enumerate() {
                        let (entry, max) = (b * tokens + t, max(b / 4));
                        prop_assert_eq!(q.scales[b / 4 * tokens + t], max / scheme.max_quant);
                        // The sums over the first two and the last two of every four quants.
                        let mut sums = [0; 2];
                        for i in 0..32 {
                            let quant = i32::from(q.quants[entry * 32 + i].wrapping_sub(scheme.bias) as i8);
                            let exact = x.get(i).map_or(0.0, |x| f64::from(*x) / f64::from(max) * f64::from(scheme.max_quant));
                            // Half a step, plus the rounding error of the reciprocal of the scale times at most 127.
                            prop_assert!((f64::from(quant) - exact).abs() <= 0.5 + 127.0 * 4.0 * UNIT, "{isa} {format:?}");
                            sums[i % 4 / 2] += quant;
                        }
                        let [first, second] = sums.map(|sum| sum * scheme.offset_factor);
                        let stored = if scheme.offset_pairs { first & 0xffff | second << 16 } else { first + second };
                        prop_assert_eq!(q.offsets[entry], stored, "{} {:?}", isa, format);
                    }
                }
            }
        }
    }

    #[test]
    fn integer_products_are_exact(
        panels in 1usize..8,
        cols in 1usize..400,
        tokens in 1usize..64,
        extreme: bool,
        seed: u64,
    ) {
        // Weight scales are 1 and activations are integers whose maximum in each group is the largest quant, so that
        // their scale is 1, too. The sums of a group are then exact integers below 128 * 127 * 127 < 2^24, and are
        // added in group order, so that every instruction set must give the same floats.
        let mut random = Random(seed);
        for format in [QuantFormat::Q8, QuantFormat::Q4] {
            let shape = MatrixShape::new(format.into(), panels * 8, cols);
            let mut pick = |low: f64, high: f64| {
                let u = random.uniform();
                let u = if extreme { u.round() } else { u };
                (low + u * (high - low)).round()
            };
            let mut weight = || match format {
                QuantFormat::Q4 => LEVELS[pick(0.0, 15.0) as usize],
                QuantFormat::Q8 => pick(-127.0, 127.0) as i8,
            };
            let w: Vec<i8> = (0..shape.rows * cols).map(|_| weight()).collect();
            let sub_scale_count = if format == QuantFormat::Q4 { shape.rows * shape.blocks() } else { 0 };
            let sub_scales: Vec<i8> = (0..sub_scale_count).map(|_| pick(-12.0, 12.0) as i8).collect();
            let sub_scale = |r: usize, i: usize| sub_scales.get(r * shape.blocks() + i / 32).map_or(1, |sub_scale| i64::from(*sub_scale));
            let mut bytes = Vec::new();
            pack_quants(shape, &w, &sub_scales, &vec![f16::ONE; shape.rows * shape.groups()], &mut bytes).unwrap();
            for isa in isas() {
                let kernels = isa.kernels();
                let limit = kernels.activation_scheme(format).max_quant;
                let mut x: Vec<f32> = (0..tokens * cols).map(|_| pick(-127.0, 127.0) as f32).collect();
                for x in x.chunks_mut(cols).flat_map(|x| x.chunks_mut(128)) {
                    x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
                    x[0] = limit * x[0].signum();
                }
                let q = quantize(kernels, format, &x, tokens);
                let tile = Tile { tokens, quants: &q.quants, scales: &q.scales, offsets: &q.offsets };
                let (blocks, groups) = (shape.blocks(), shape.groups());
                let all = Panels { format, bytes: &bytes, panel_bytes: shape.panel_bytes(), blocks };
                // In two steps, added to the previous content.
                let mut acc = vec![5.0; tokens * shape.rows];
                kernels.quantized(all, 0..groups / 2, tile, &mut acc);
                kernels.quantized(all, groups / 2..groups, tile, &mut acc);
                for (t, x) in x.chunks(cols).enumerate() {
                    for (r, w) in w.chunks(cols).enumerate() {
                        let mut exact = 5.0;
                        for (g, (w, x)) in w.chunks(128).zip(x.chunks(128)).enumerate() {
                            let terms = w.iter().zip(x).enumerate();
                            let sum: i64 = terms.map(|(i, (w, x))| i64::from(*w) * sub_scale(r, g * 128 + i) * *x as i64).sum();
                            exact += sum as f32;
                        }
                        prop_assert_eq!(acc[t * shape.rows + r], exact, "{} {:?} row {} token {}", isa, format, r, t);
                    }
                }
            }
        }
    }

    #[test]
    fn matrix_products(m in 1usize..30, panels in 1usize..10, k in 1usize..100, slack in 0usize..5, add: bool, seed: u64) {
        let n = 8 * panels;
        let mut random = Random(seed);
        let a = random.normals(m * (k + slack));
        let b = random.normals(k * (n + slack));
        let before = random.normals(m * (n + slack));
        for isa in isas() {
            let mut c = before.clone();
            let (left, right) = (Strided { data: &a, stride: k + slack }, Strided { data: &b, stride: n + slack });
            isa.kernels().matmul([m, n, k], left, right, add, &mut c, n + slack);
            for i in 0..m {
                for j in 0..n + slack {
                    let at = i * (n + slack) + j;
                    if j >= n {
                        prop_assert_eq!(c[at], before[at], "{}: outside of the result", isa);
                        continue;
                    }
                    let terms = (0..k).map(|p| f64::from(a[i * (k + slack) + p]) * f64::from(b[p * (n + slack) + j]));
                    let before = if add { f64::from(before[at]) } else { 0.0 };
                    let exact = before + terms.clone().sum::<f64>();
                    let magnitude = before.abs() + terms.map(f64::abs).sum::<f64>();
                    // k additions and products, rounded separately or fused.
                    let bound = 2.0 * (k + 1) as f64 * UNIT * magnitude;
                    prop_assert!((f64::from(c[at]) - exact).abs() <= bound, "{isa} {m}x{n}x{k}");
                }
            }
        }
    }

    #[test]
    fn float_panels_with_one_token_are_a_matrix_product(panels in 1usize..12, cols in 1usize..120, seed: u64) {
        let mut random = Random(seed);
        let x = random.normals(cols);
        for (format, packed) in [(FloatFormat::F32, Format::F32), (FloatFormat::F16, Format::F16)] {
            let shape = MatrixShape::new(packed, panels * 8, cols);
            let mut bytes = Vec::new();
            edge_lmm_kernels::pack_rows(shape, &random.normals(shape.rows * cols), &mut bytes).unwrap();
            let matrix = edge_lmm_kernels::Matrix::new(shape, &bytes).unwrap();
            let mut rows = vec![0.0; shape.rows * cols];
            for (r, row) in rows.chunks_mut(cols).enumerate() {
                matrix.row_into(r, row);
            }
            let b: Vec<f32> = (0..cols).flat_map(|i| (0..shape.rows).map(move |r| (r, i))).map(|(r, i)| rows[r * cols + i]).collect();
            for isa in isas() {
                let (mut gemv, mut product) = (vec![f32::NAN; shape.rows], vec![0.0; shape.rows]);
                isa.kernels().float_gemv(format, &bytes, shape.panel_bytes(), &x, &mut gemv);
                let (a, b) = (Strided { data: &x, stride: cols }, Strided { data: &b, stride: shape.rows });
                isa.kernels().matmul([1, shape.rows, cols], a, b, false, &mut product, shape.rows);
                prop_assert_eq!(gemv, product, "{} {:?}", isa, format);
            }
        }
    }

    #[test]
    fn softmax_of_a_row(len in 1usize..300, spread in 0.0f32..60.0, seed: u64) {
        let s: Vec<f32> = Random(seed).normals(len).into_iter().map(|s| s * spread).collect();
        let max = s.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
        for isa in isas() {
            let mut e = s.clone();
            let (found, sum) = isa.kernels().softmax(&mut e);
            prop_assert_eq!(found, max);
            let mut exact = 0.0;
            for (e, s) in e.iter().zip(&s) {
                // The exponential of the rounded difference; subnormal results become zero.
                let value = f64::from(s - max).exp();
                prop_assert!((f64::from(*e) - value).abs() <= 3e-7 * value + 2e-38, "{isa}: exp({}) = {e}", s - max);
                exact += value;
            }
            let bound = (3e-7 + (len as f64 / 16.0 + 5.0) * UNIT) * exact;
            prop_assert!((f64::from(sum) - exact).abs() <= bound, "{isa}: {sum}, not {exact}");
        }
    }
}

#[test]
fn all_half_precision_numbers_widen_exactly() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for isa in isas() {
        // Includes a length that is not a multiple of a vector.
        for count in [65_536, 1001] {
            let mut wide = vec![0.0; count];
            isa.kernels().widen(&bytes[..2 * count], &mut wide);
            for (bits, wide) in (0..=u16::MAX).zip(wide) {
                let exact = f16::from_bits(bits).to_f32();
                assert!(
                    wide == exact || (wide.is_nan() && exact.is_nan()),
                    "{isa}: {bits:#06x} is {wide}, not {exact}"
                );
            }
        }
    }
}

#[test]
fn a_softmax_of_nothing() {
    for isa in isas() {
        let (max, sum) = isa.kernels().softmax(&mut []);
        assert_eq!((max, sum), (f32::NEG_INFINITY, 0.0), "{isa}");
        for len in [1, 16, 20] {
            let mut s = vec![f32::NEG_INFINITY; len];
            assert_eq!(isa.kernels().softmax(&mut s).0, f32::NEG_INFINITY, "{isa}");
            let mut s = vec![f32::NAN; len];
            let (max, sum) = isa.kernels().softmax(&mut s);
            assert!(max.is_nan() && sum.is_nan(), "{isa}: NaN is hidden");
        }
    }
}

#[test]
fn short_slices_are_refused() {
    let shape = MatrixShape::new(Format::Q4, 16, 32);
    let bytes = vec![0; shape.byte_len().unwrap()];
    let panels = Panels {
        format: QuantFormat::Q4,
        bytes: &bytes,
        panel_bytes: shape.panel_bytes(),
        blocks: 1,
    };
    for isa in isas() {
        // Two panels and two tokens: 64 quants, 2 scales, 32 sums.
        let run = |quants: usize, scales: usize, sums: usize| {
            let (quants, scales, mut acc) = (vec![0; quants], vec![0.0; scales], vec![0.0; sums]);
            let tile = Tile {
                tokens: 2,
                quants: &quants,
                scales: &scales,
                offsets: &[0; 2],
            };
            std::panic::catch_unwind(move || isa.kernels().quantized(panels, 0..1, tile, &mut acc))
                .is_ok()
        };
        assert!(run(64, 2, 32), "{isa}");
        assert!(
            !run(63, 2, 32) && !run(64, 1, 32) && !run(64, 2, 31),
            "{isa}"
        );
    }
}
