//! Feed-forward networks against the separate operations, and products in new memory against those in existing memory,
//! bit for bit, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::{
    Activation, Epilogue, FeedForward, Format, Matrix, MatrixShape, ThreadPool, feed_forward,
    gated, linear, pack_rows, product,
};
use proptest::prelude::*;
use support::{Random, isas, pool, threads};

const ACTIVATIONS: [Activation; 4] = [
    Activation::None,
    Activation::Silu,
    Activation::QuickGelu,
    Activation::Gelu,
];

fn packed(shape: MatrixShape, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_rows(shape, &random.normals(shape.rows * shape.cols), &mut bytes).unwrap();
    bytes
}

/// Sizes and options of a case.
#[derive(Clone, Copy, Debug)]
struct Case {
    formats: [Format; 2],
    gated: bool,
    bias: bool,
    activation: Activation,
    inputs: usize,
    width: usize,
    outputs: usize,
    tokens: usize,
    residual: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let format = || {
        prop_oneof![
            6 => Just(Format::Q4), 6 => Just(Format::Q8), 1 => Just(Format::F16), 1 => Just(Format::F32)
        ]
    };
    // Widths that are a multiple of a panel, of a group, or of neither.
    let width = prop_oneof![
        1usize..300,
        (1usize..40).prop_map(|n| 8 * n),
        Just(128),
        Just(384)
    ];
    let tokens = prop_oneof![1usize..5, 60usize..70, 120usize..300];
    (
        (format(), format()),
        any::<(bool, bool, bool)>(),
        prop::sample::select(&ACTIVATIONS[..]),
        (1usize..200, width, 1usize..40, tokens),
    )
        .prop_map(
            |(formats, (gated, bias, residual), activation, (inputs, width, outputs, tokens))| {
                Case {
                    formats: [formats.0, formats.1],
                    gated,
                    bias,
                    activation,
                    inputs,
                    width,
                    outputs,
                    tokens,
                    residual,
                }
            },
        )
}

/// The outputs of [`feed_forward`] and of the separate operations.
fn both(case: &Case, pool: &ThreadPool, seed: u64) -> [Vec<f32>; 2] {
    let mut random = Random(seed);
    let rows = case.width * if case.gated { 2 } else { 1 };
    let up = MatrixShape::new(case.formats[0], rows, case.inputs);
    let down = MatrixShape::new(case.formats[1], case.outputs, case.width);
    let bytes = [packed(up, &mut random), packed(down, &mut random)];
    let (up, down) = (
        Matrix::new(up, &bytes[0]).unwrap(),
        Matrix::new(down, &bytes[1]).unwrap(),
    );
    let biases = [random.normals(rows), random.normals(case.outputs)];
    let [up_bias, down_bias] = biases.each_ref().map(|bias| case.bias.then_some(&bias[..]));
    let x = random.normals(case.tokens * case.inputs);
    let start = random.normals(case.tokens * case.outputs);
    let layers = FeedForward {
        up,
        up_bias,
        activation: case.activation,
        gated: case.gated,
        down,
        down_bias,
    };
    let mut fused = start.clone();
    feed_forward(pool, &layers, &x, case.residual, &mut fused);

    let first = if case.gated {
        Activation::None
    } else {
        case.activation
    };
    let mut hidden = product(pool, &up, &x, case.tokens, up_bias, first);
    if case.gated {
        let mut out = vec![0.0; case.tokens * case.width];
        gated(pool, &hidden, case.width, case.activation, &mut out);
        hidden = out;
    }
    let mut plain = start;
    let epilogue = Epilogue {
        bias: down_bias,
        activation: Activation::None,
        accumulate: case.residual,
    };
    linear(pool, &down, &hidden, &epilogue, &mut plain);
    [fused, plain]
}

proptest! {
    #![proptest_config(support::cases(48))]

    #[test]
    fn it_is_bitwise_the_operations_that_it_is_made_of(case in case(), seed: u64) {
        for isa in isas() {
            let [fused, plain] = both(&case, &pool(isa), seed);
            prop_assert_eq!(&fused, &plain, "{} {:?}", isa, case);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit(case in case(), seed: u64) {
        for isa in isas() {
            let [one, _] = both(&case, &ThreadPool::with_isa(threads(1), isa), seed);
            for n in 2..=4 {
                let [several, _] = both(&case, &ThreadPool::with_isa(threads(n), isa), seed);
                prop_assert_eq!(&several, &one, "{} {} threads {:?}", isa, n, case);
            }
        }
    }

    #[test]
    fn new_memory_holds_what_old_memory_does(
        format in prop::sample::select(&Format::ALL[..]),
        (rows, cols, tokens) in (1usize..100, 1usize..200, 0usize..300),
        bias: bool,
        activation in prop::sample::select(&ACTIVATIONS[..]),
        seed: u64,
    ) {
        let mut random = Random(seed);
        let shape = MatrixShape::new(format, rows, cols);
        let bytes = packed(shape, &mut random);
        let matrix = Matrix::new(shape, &bytes).unwrap();
        let (x, bias_values) = (random.normals(tokens * cols), random.normals(rows));
        let bias = bias.then_some(&bias_values[..]);
        for isa in isas() {
            let pool = pool(isa);
            let mut old = vec![f32::NAN; tokens * rows];
            let epilogue = Epilogue { bias, activation, accumulate: false };
            linear(&pool, &matrix, &x, &epilogue, &mut old);
            let new = product(&pool, &matrix, &x, tokens, bias, activation);
            prop_assert_eq!(&new, &old, "{} {}", isa, format);
        }
    }
}

/// A NaN in the inputs of a token must reach the outputs of that token and of no other.
#[test]
fn what_is_not_a_number_shows() {
    let mut random = Random(5);
    let (up, down) = (
        MatrixShape::new(Format::Q4, 256, 64),
        MatrixShape::new(Format::Q4, 16, 128),
    );
    let bytes = [packed(up, &mut random), packed(down, &mut random)];
    let layers = FeedForward {
        up: Matrix::new(up, &bytes[0]).unwrap(),
        up_bias: None,
        activation: Activation::Silu,
        gated: true,
        down: Matrix::new(down, &bytes[1]).unwrap(),
        down_bias: None,
    };
    let mut x = random.normals(3 * 64);
    x[64 + 7] = f32::NAN;
    for isa in isas() {
        let mut out = vec![0.0; 3 * 16];
        feed_forward(&pool(isa), &layers, &x, false, &mut out);
        for (token, out) in out.chunks(16).enumerate() {
            assert!(
                out.iter().all(|x| x.is_nan() == (token == 1)),
                "{isa} token {token}: {out:?}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "rows before a product with 64 inputs")]
fn sizes_must_fit() {
    let mut random = Random(1);
    let (up, down) = (
        MatrixShape::new(Format::Q8, 64, 32),
        MatrixShape::new(Format::Q8, 8, 64),
    );
    let bytes = [packed(up, &mut random), packed(down, &mut random)];
    let layers = FeedForward {
        up: Matrix::new(up, &bytes[0]).unwrap(),
        up_bias: None,
        activation: Activation::Silu,
        gated: true,
        down: Matrix::new(down, &bytes[1]).unwrap(),
        down_bias: None,
    };
    feed_forward(&pool(isas()[0]), &layers, &[0.0; 32], false, &mut [0.0; 8]);
}
