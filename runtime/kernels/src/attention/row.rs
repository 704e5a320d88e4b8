//! Attention weights of one query.

use super::cache::{CachedKeys, KvCache};
use super::layout::{CHUNK, Keys, STRIP};
use super::shape::Heads;
use crate::cpu::Strided;
use crate::element::Element;
use crate::pool::ThreadPool;
use crate::scratch::Parts;
use std::ops::Range;

/// Mean over the heads of the attention weights, `softmax(q k^T * scale)`, that one query gives to the positions
/// `keys` of a layer of the cache. They sum to 1.
///
/// # Shapes
/// `q`: `heads * head_dim`; result: `keys.len()`
///
/// # Panics
/// If the heads differ from those of the cache, `layer` is out of range, `keys` is empty or not within the
/// capacity, or `q` has the wrong length.
pub fn attention_row(
    pool: &ThreadPool,
    heads: Heads,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    keys: Range<usize>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    cache.check_heads(heads, layer);
    assert!(
        !keys.is_empty() && keys.end <= cache.capacity(),
        "keys {keys:?} of {cache:?}"
    );
    assert_eq!(q.len(), heads.heads * heads.head_dim, "elements of a query");
    let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
    match cache.keys(layer) {
        CachedKeys::Single(all) => mean_weights(pool, heads, &q, all, keys),
        CachedKeys::Half(all) => mean_weights(pool, heads, &q, all, keys),
    }
}

/// Computes the weights of every head with one task for each key head, then their mean in the order of the heads.
fn mean_weights<T: Element>(
    pool: &ThreadPool,
    heads: Heads,
    q: &[f32],
    all: Keys<'_, T>,
    keys: Range<usize>,
) -> Vec<f32> {
    let (group, head_dim) = (heads.group(), heads.head_dim);
    let chunks = keys.start / CHUNK..keys.end.div_ceil(CHUNK);
    let width = chunks.len() * CHUNK;
    let first = keys.start - chunks.start * CHUNK;
    let mut weights = vec![0.0; heads.heads * width];
    let parts = Parts::new(&mut weights);
    pool.run(heads.kv_heads, |head| {
        let rows = head * group..(head + 1) * group;
        // SAFETY: each key head has its own rows and task.
        #[allow(unsafe_code)]
        let weights = unsafe { parts.part(rows.start * width..rows.end * width) };
        let q = Strided {
            data: &q[rows.start * head_dim..],
            stride: head_dim,
        };
        for (i, chunk) in chunks.clone().enumerate() {
            let (k, _) = all.chunk(head, chunk);
            for column in (0..CHUNK).step_by(STRIP) {
                let k = Strided {
                    data: &k[column * head_dim..],
                    stride: STRIP,
                };
                let size = [group, STRIP, head_dim];
                let scores = &mut weights[i * CHUNK + column..];
                T::matmul(pool.kernels(), size, q, k, scores, width);
            }
        }
        for row in weights.chunks_exact_mut(width) {
            let row = &mut row[first..][..keys.len()];
            let (_, sum) = pool.kernels().softmax(row);
            let factor = 1.0 / (sum * heads.heads as f32);
            row.iter_mut().for_each(|weight| *weight *= factor);
        }
    });
    let mut mean = vec![0.0; keys.len()];
    for row in weights.chunks_exact(width) {
        for (mean, weight) in mean.iter_mut().zip(&row[first..]) {
            *mean += weight;
        }
    }
    mean
}
