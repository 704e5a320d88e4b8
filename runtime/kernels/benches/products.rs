//! Products with packed weights with the shapes of Qwen2-VL-2B.
//!
//! `cargo bench -p edge-lmm-kernels --bench products [FILTER]`. The environment variable `EDGE_LMM_ISA` selects
//! the instruction set, `THREADS` the number of threads (default: one per core). Elements are operations, two
//! per weight and token; bytes are those of the weights.

mod common;

use common::pool;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edge_lmm_kernels::workload::{
    FEW_TOKENS, IMAGE_TOKENS, Layer, NETWORKS, Network, PROMPT_TOKENS, TEXT_LAYERS, VISION_LAYERS,
    noise, weights,
};
use edge_lmm_kernels::{
    Activation, Epilogue, FeedForward, Format, Matrix, MatrixShape, feed_forward, linear, pack_rows,
};
use std::hint::black_box;
use std::time::Duration;

/// Fewest bytes of weights in a decode step, so that they are read from memory.
const COLD_BYTES: usize = 512 << 20;

/// Multiplies several matrices in turn, each by `tokens` tokens.
fn bench(c: &mut Criterion, group: &str, format: Format, layer: Layer, tokens: usize) {
    let pool = pool();
    let Layer { rows, cols, .. } = layer;
    let shape = MatrixShape::new(format, rows, cols);
    let len = shape.byte_len().expect("the matrix fits the address space");
    let copies = if tokens == 1 {
        COLD_BYTES.div_ceil(len)
    } else {
        1
    };
    let bytes = weights(shape, copies).expect("finite weights");
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
        for layer in TEXT_LAYERS {
            bench(c, "decode", format, layer, 1);
        }
    }
}

fn prefill(c: &mut Criterion) {
    // The output projection, the last layer, is computed for the last token only.
    for layer in &TEXT_LAYERS[..4] {
        bench(c, "prefill", Format::Q4, *layer, PROMPT_TOKENS);
    }
}

fn vision(c: &mut Criterion) {
    for format in [Format::Q8, Format::Q4, Format::F16] {
        for layer in VISION_LAYERS {
            for tokens in IMAGE_TOKENS {
                bench(c, "vision", format, layer, tokens);
            }
        }
    }
}

/// Feed-forward networks, as the models compute them.
fn feed_forwards(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("feed_forward");
    group.sample_size(10);
    for network in NETWORKS
        .into_iter()
        .filter(|network| network.tokens > FEW_TOKENS)
    {
        let Network {
            stage,
            gated,
            inputs,
            tokens,
            ..
        } = network;
        let [up, down] = network.shapes();
        let bytes = [up, down].map(|shape| weights(shape, 1).expect("finite weights"));
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
        group.throughput(Throughput::Elements(network.operations() as u64));
        group.bench_function(BenchmarkId::new(stage, tokens), |b| {
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
