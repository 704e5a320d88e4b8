//! Products with packed weights, in the shapes of Qwen2-VL-2B.
//!
//! `cargo bench -p edge-lmm-kernels --bench products [FILTER]`; `EDGE_LMM_ISA` chooses the instruction set, `THREADS` the
//! number of threads (default: all). Elements are operations, two per weight and token; bytes are those of the weights.

mod common;

use common::{noise, pool};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edge_lmm_kernels::{
    Activation, Epilogue, FeedForward, Format, Matrix, MatrixShape, feed_forward, linear, pack_rows,
};
use std::hint::black_box;
use std::time::Duration;

/// Outputs and inputs of the language model's layers: attention output, QKV, gate and up, down, head.
const TEXT: [(usize, usize); 5] = [
    (1536, 1536),
    (2048, 1536),
    (17920, 1536),
    (1536, 8960),
    (151936, 1536),
];
/// Of the vision tower's: QKV, attention output, the two of the feed-forward.
const VISION: [(usize, usize); 4] = [(3840, 1280), (1280, 1280), (5120, 1280), (1280, 5120)];
/// Weights of a decode step must come from memory: at least this many bytes in turn.
const COLD_BYTES: usize = 512 << 20;

/// Packed weights: a few panels of noise, again and again.
fn weights(shape: MatrixShape, copies: usize) -> Vec<u8> {
    let rows = shape.rows.min(64);
    let mut few = Vec::new();
    pack_rows(shape, &noise(rows * shape.cols), &mut few).expect("finite weights");
    let len = shape.byte_len().expect("a real shape") * copies;
    few.iter().copied().cycle().take(len).collect()
}

/// Several matrices in turn, each with `tokens` tokens.
fn bench(
    c: &mut Criterion,
    group: &str,
    format: Format,
    (rows, cols): (usize, usize),
    tokens: usize,
) {
    let pool = pool();
    let shape = MatrixShape::new(format, rows, cols);
    let len = shape.byte_len().expect("a real shape");
    let copies = if tokens == 1 {
        COLD_BYTES.div_ceil(len)
    } else {
        1
    };
    let bytes = weights(shape, copies);
    let matrices: Vec<Matrix> = bytes
        .chunks(len)
        .map(|b| Matrix::new(shape, b).expect("whole matrices"))
        .collect();
    let x = noise(tokens * cols);
    let mut out = vec![0.0; tokens * rows];
    let mut group = c.benchmark_group(group);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group.throughput(if tokens == 1 {
        Throughput::Bytes((len * copies) as u64)
    } else {
        Throughput::Elements(2 * (rows * cols * tokens) as u64)
    });
    let id = BenchmarkId::new(format!("{format}/{rows}x{cols}"), tokens);
    group.bench_function(id, |b| {
        b.iter(|| {
            for matrix in &matrices {
                linear(&pool, matrix, black_box(&x), &Epilogue::default(), &mut out);
            }
        })
    });
    group.finish();
}

fn decode(c: &mut Criterion) {
    for format in [Format::Q4, Format::Q8] {
        for shape in TEXT {
            bench(c, "decode", format, shape, 1);
        }
    }
}

fn prefill(c: &mut Criterion) {
    // The head only sees the last token.
    for shape in &TEXT[..4] {
        bench(c, "prefill", Format::Q4, *shape, 512);
    }
}

fn vision(c: &mut Criterion) {
    for format in [Format::Q8, Format::Q4, Format::F16] {
        for shape in VISION {
            for tokens in [576, 2304] {
                bench(c, "vision", format, shape, tokens);
            }
        }
    }
}

/// Both products of a layer's feed-forward part, as the models compute them.
fn feed_forwards(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("feed_forward");
    group.sample_size(10);
    for (what, format, gated, inputs, width, tokens) in [
        ("prefill", Format::Q4, true, 1536, 8960, 512),
        ("vision", Format::Q8, false, 1280, 5120, 2304),
    ] {
        let rows = if gated { 2 * width } else { width };
        let (up, down) = (
            MatrixShape::new(format, rows, inputs),
            MatrixShape::new(format, inputs, width),
        );
        let bytes = [weights(up, 1), weights(down, 1)];
        let layers = FeedForward {
            up: Matrix::new(up, &bytes[0]).expect("whole matrices"),
            up_bias: None,
            activation: Activation::Silu,
            gated,
            down: Matrix::new(down, &bytes[1]).expect("whole matrices"),
            down_bias: None,
        };
        let x = noise(tokens * inputs);
        let mut out = vec![0.0; tokens * inputs];
        let products = if gated { 3 } else { 2 };
        group.throughput(Throughput::Elements(
            (2 * inputs * width * products * tokens) as u64,
        ));
        group.bench_function(BenchmarkId::new(what, tokens), |b| {
            b.iter(|| feed_forward(&pool, &layers, black_box(&x), true, &mut out))
        });
    }
    group.finish();
}

fn packing(c: &mut Criterion) {
    let mut group = c.benchmark_group("pack");
    group.sample_size(10);
    let shape = MatrixShape::new(Format::Q4, 256, 1024);
    let rows = noise(shape.rows * shape.cols);
    for format in Format::ALL {
        group.throughput(Throughput::Elements(rows.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format), |b| {
            b.iter(|| {
                let mut out = Vec::new();
                pack_rows(MatrixShape { format, ..shape }, black_box(&rows), &mut out)
                    .expect("finite weights");
                out
            })
        });
    }
    group.finish();
}

criterion_group!(benches, decode, prefill, vision, feed_forwards, packing);
criterion_main!(benches);
