//! Products with packed weights against double precision, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::{
    Activation, Epilogue, Format, Matrix, MatrixShape, ThreadPool, linear, pack_rows,
};
use proptest::prelude::*;
use support::{Random, isas, max_quant, pool, threads};

/// A packed matrix.
struct Weights {
    shape: MatrixShape,
    bytes: Vec<u8>,
}

impl Weights {
    fn random(format: Format, rows: usize, cols: usize, random: &mut Random) -> Self {
        let shape = MatrixShape::new(format, rows, cols);
        let mut bytes = Vec::new();
        pack_rows(shape, &random.normals(rows * cols), &mut bytes).unwrap();
        Self { shape, bytes }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.shape, &self.bytes).unwrap()
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.cols];
        self.matrix().row_into(row, &mut out);
        out
    }

    fn product(&self, pool: &ThreadPool, x: &[f32], tokens: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; tokens * self.shape.rows];
        linear(pool, &self.matrix(), x, &Epilogue::default(), &mut out);
        out
    }
}

/// The exact product of a row and the activations of a token, and the largest error of the kernel.
///
/// With float weights this is the rounding error of `cols` multiply-adds, each at most `2 u` of a partial sum that
/// does not exceed the sum of magnitudes (Higham 2002, section 3.1). With quantized weights, the activations are
/// rounded by half a step, `max |x| / limit / 2`, and there is one multiply-add per group and the products of scales.
fn reference(format: Format, limit: f32, row: &[f32], x: &[f32]) -> (f64, f64) {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let (mut sum, mut magnitude, mut step_error) = (0.0, 0.0, 0.0);
    for (w, x) in row.chunks(128).zip(x.chunks(128)) {
        let max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (w, x) in w.iter().zip(x) {
            let (w, x) = (f64::from(*w), f64::from(*x));
            sum += w * x;
            magnitude += (w * x).abs();
            // Half a step, plus the rounding error of `x * limit / max`.
            step_error += w.abs() * f64::from(max / limit) * 0.501;
        }
    }
    if format.is_quantized() {
        let groups = row.len().div_ceil(128) as f64;
        (
            sum,
            step_error + (groups + 8.0) * 2.0 * unit * (magnitude + step_error),
        )
    } else {
        (sum, row.len() as f64 * 2.0 * unit * magnitude)
    }
}

fn check(format: Format, rows: usize, cols: usize, tokens: usize, seed: u64) {
    let mut random = Random(seed);
    let weights = Weights::random(format, rows, cols, &mut random);
    let x = random.normals(tokens * cols);
    for isa in isas() {
        let pool = ThreadPool::with_isa(threads(2), isa);
        let limit = max_quant(&pool, format);
        let out = weights.product(&pool, &x, tokens);
        for r in 0..rows {
            let row = weights.row(r);
            for (t, x) in x.chunks(cols).enumerate() {
                let (exact, bound) = reference(format, limit, &row, x);
                let found = f64::from(out[t * rows + r]);
                assert!(
                    (found - exact).abs() <= bound,
                    "{isa} {format} {rows}x{cols}, {tokens} tokens: output {r} of token {t} is {found}, not {exact} +- {bound}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(support::cases(32))]

    #[test]
    fn products_are_within_the_quantization_error(
        format in prop::sample::select(&Format::ALL[..]),
        rows in 1usize..70,
        cols in 1usize..300,
        tokens in 1usize..80,
        seed: u64,
    ) {
        check(format, rows, cols, tokens, seed);
    }

    #[test]
    fn one_token_is_bitwise_the_same_as_many(
        format in prop::sample::select(&Format::ALL[..]),
        rows in 1usize..200,
        cols in 1usize..1500,
        tokens in 2usize..80,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let weights = Weights::random(format, rows, cols, &mut random);
        let x = random.normals(tokens * cols);
        for isa in isas() {
            let pool = pool(isa);
            let many = weights.product(&pool, &x, tokens);
            for (t, x) in x.chunks(cols).enumerate() {
                let one = weights.product(&pool, x, 1);
                prop_assert_eq!(&one[..], &many[t * rows..][..rows], "{} {} token {}", isa, format, t);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit(
        format in prop::sample::select(&Format::ALL[..]),
        rows in 1usize..300,
        cols in 1usize..100,
        tokens in 1usize..300,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let weights = Weights::random(format, rows, cols, &mut random);
        let x = random.normals(tokens * cols);
        for isa in isas() {
            let one = weights.product(&ThreadPool::with_isa(threads(1), isa), &x, tokens);
            for n in 2..=4 {
                let several = weights.product(&ThreadPool::with_isa(threads(n), isa), &x, tokens);
                prop_assert_eq!(&several, &one, "{} {} {} threads", isa, format, n);
            }
        }
    }
}

#[test]
fn real_shapes() {
    for format in Format::ALL {
        check(format, 24, 1536, 3, 1);
        check(format, 17, 1176, 130, 2);
    }
}

#[test]
fn the_epilogue_adds_the_bias_then_activates_then_accumulates() {
    let mut random = Random(3);
    for format in Format::ALL {
        let weights = Weights::random(format, 13, 40, &mut random);
        let (x, bias, before) = (
            random.normals(5 * 40),
            random.normals(13),
            random.normals(5 * 13),
        );
        for isa in isas() {
            let pool = pool(isa);
            let plain = weights.product(&pool, &x, 5);
            let epilogue = Epilogue {
                bias: Some(&bias),
                activation: Activation::Relu,
                accumulate: true,
            };
            let mut out = before.clone();
            linear(&pool, &weights.matrix(), &x, &epilogue, &mut out);
            for (i, out) in out.iter().enumerate() {
                assert_eq!(
                    *out,
                    before[i] + (plain[i] + bias[i % 13]).max(0.0),
                    "{isa} {format} output {i}"
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity_show_in_the_result() {
    let mut random = Random(4);
    for format in Format::ALL {
        let weights = Weights::random(format, 9, 70, &mut random);
        for isa in isas() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random.normals(2 * 70);
                x[70 + 33] = bad;
                let out = weights.product(&pool(isa), &x, 2);
                assert!(
                    out[..9].iter().all(|v| v.is_finite()),
                    "{isa} {format}: the other token is unharmed"
                );
                assert!(
                    out[9..].iter().all(|v| !v.is_finite()),
                    "{isa} {format}: {bad} is hidden in {:?}",
                    &out[9..]
                );
            }
        }
    }
}

#[test]
fn extreme_quants_are_exact() {
    // All quants, sub-block scales and activations are at their limits, for the largest possible sums. Scales are powers
    // of two, so that the result is exact.
    use edge_lmm_kernels::pack::pack_quants;
    let (rows, cols) = (16, 256);
    for (format, quants, sub_scales) in [
        (Format::Q4, [-10i8, 9], &[-12i8, 12][..]),
        (Format::Q8, [-127, 127], &[1][..]),
    ] {
        for (quant, sub_scale) in quants
            .iter()
            .flat_map(|q| sub_scales.iter().map(move |l| (*q, *l)))
        {
            let shape = MatrixShape::new(format, rows, cols);
            let sub_scale_count = if format == Format::Q4 {
                rows * shape.blocks()
            } else {
                0
            };
            let mut bytes = Vec::new();
            pack_quants(
                shape,
                &vec![quant; rows * cols],
                &vec![sub_scale; sub_scale_count],
                &vec![half::f16::ONE; rows * shape.groups()],
                &mut bytes,
            )
            .unwrap();
            let matrix = Matrix::new(shape, &bytes).unwrap();
            for isa in isas() {
                let pool = pool(isa);
                let limit = max_quant(&pool, format);
                for (sign, tokens) in [(-1.0, 1), (-1.0, 3), (1.0, 1), (1.0, 3)] {
                    let x = vec![sign * limit; tokens * cols];
                    let mut out = vec![0.0; tokens * rows];
                    linear(&pool, &matrix, &x, &Epilogue::default(), &mut out);
                    let exact =
                        f32::from(quant) * f32::from(sub_scale) * sign * limit * cols as f32;
                    assert!(
                        out.iter().all(|v| *v == exact),
                        "{isa} {format} {quant} {sub_scale} {sign}: {:?}, not {exact}",
                        out[0]
                    );
                }
            }
        }
    }
}

#[test]
fn empty_sizes() {
    for format in Format::ALL {
        let empty = Matrix::new(MatrixShape::new(format, 0, 8), &[]).unwrap();
        linear(&pool(isas()[0]), &empty, &[], &Epilogue::default(), &mut []);
        // Without inputs the product is zero and the bias remains.
        let shape = MatrixShape::new(format, 3, 0);
        let bytes = vec![0; shape.byte_len().unwrap()];
        let mut out = [f32::NAN; 6];
        let epilogue = Epilogue {
            bias: Some(&[1.0, 2.0, 3.0]),
            ..Epilogue::default()
        };
        linear(
            &pool(isas()[0]),
            &Matrix::new(shape, &bytes).unwrap(),
            &[],
            &epilogue,
            &mut out,
        );
        assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }
}
