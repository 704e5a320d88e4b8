//! Attention with the shapes of Qwen2-VL-2B and CLIP.
//!
//! `cargo bench -p edge-lmm-kernels --bench attention [FILTER]`. The environment variable `EDGE_LMM_ISA` selects
//! the instruction set, `THREADS` the number of threads (default: one per core). Elements are floating-point
//! operations; bytes are those of the keys and values.

mod common;

use common::pool;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edge_lmm_kernels::workload::{
    IMAGE_ATTENTION, ImageAttention, PROMPT_TOKENS, TEXT_DEPTH, TEXT_HEADS, noise,
};
use edge_lmm_kernels::{KvCache, Mask, Rows, attention, cached_attention};
use std::hint::black_box;

/// All tokens attend to all. Queries, keys and values are columns of one matrix, as the output of a fused
/// projection.
fn vision(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("vision");
    group.sample_size(10);
    for ImageAttention { heads, tokens, .. } in IMAGE_ATTENTION {
        let (len, head_dim) = (tokens, heads.head_dim);
        let width = heads.heads * head_dim;
        let qkv = noise(len * 3 * width);
        let rows = |part: usize| Rows {
            data: &qkv[part * width..],
            stride: 3 * width,
        };
        group.throughput(Throughput::Elements((4 * len * len * width) as u64));
        group.bench_function(
            BenchmarkId::from_parameter(format!("{len}x{}x{head_dim}", heads.heads)),
            |b| {
                b.iter(|| {
                    let (q, k, v) = (black_box(rows(0)), rows(1), rows(2));
                    attention(&pool, heads, q, len, k, v, len, Mask::Full, None, 0.1)
                })
            },
        );
    }
    group.finish();
}

/// The layers of the language model: a prompt, then one token after 600.
fn text(c: &mut Criterion) {
    let pool = pool();
    let heads = TEXT_HEADS;
    let width = heads.heads * heads.head_dim;
    let (kv_width, layers) = (heads.kv_heads * heads.head_dim, TEXT_DEPTH);
    let mut group = c.benchmark_group("text");
    group.sample_size(10);
    for (q_len, kv_len) in [(PROMPT_TOKENS, PROMPT_TOKENS), (1, 600)] {
        let mut cache = KvCache::new(layers, heads.kv_heads, heads.head_dim, kv_len, true)
            .expect("the cache is small");
        let kv = noise(kv_len * kv_width);
        let kv = Rows {
            data: &kv,
            stride: kv_width,
        };
        for layer in 0..layers {
            cache.append(layer, kv, kv, kv_len);
        }
        let q = noise(q_len * width);
        group.throughput(if q_len == 1 {
            Throughput::Bytes((layers * kv_len * kv_width * 4) as u64)
        } else {
            Throughput::Elements((layers * 2 * q_len * kv_len * width) as u64)
        });
        group.bench_function(
            BenchmarkId::from_parameter(format!("{q_len} of {kv_len}")),
            |b| {
                b.iter(|| {
                    for layer in 0..layers {
                        let q = Rows {
                            data: black_box(&q),
                            stride: width,
                        };
                        black_box(cached_attention(
                            &pool,
                            heads,
                            q,
                            q_len,
                            &cache,
                            layer,
                            kv_len,
                            Mask::Causal,
                            None,
                            0.1,
                        ));
                    }
                })
            },
        );
    }
    group.finish();
}

criterion_group!(benches, vision, text);
criterion_main!(benches);
