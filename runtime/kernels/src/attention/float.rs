//! Attention in floats.

use super::cache::{CachedKeys, KvCache};
use super::layout::{CHUNK, ChunkLayout, Keys};
use super::shape::{Heads, Mask, Rows, WeightedMask, check_mask};
use super::step::Step;
use crate::pool::ThreadPool;
use crate::scratch::{self, Parts, fresh};
use std::mem::MaybeUninit;

/// Floats of keys and values that [`attention`] rearranges at a time.
const PACK_FLOATS: usize = 1 << 20;

/// Attention, `softmax(q k^T * scale + bias + ln(weights)) v` for each head, computed tile by tile. The
/// weights are those of the keys, `mask.key_weights`.
///
/// The result of a query without keys is zero.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `k`, `v`: `kv_len` rows of `kv_heads * head_dim`;
/// `bias`: `[heads, q_len, kv_len]`; result: `[q_len, heads * head_dim]`
///
/// # Panics
/// If the heads are impossible, a slice is too short, a causal mask has more queries than keys, the
/// segments do not ascend from 0 to `kv_len == q_len`, or a weight is not finite and positive.
#[allow(clippy::too_many_arguments)]
pub fn attention<'a>(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    q_len: usize,
    k: Rows,
    v: Rows,
    kv_len: usize,
    mask: impl Into<WeightedMask<'a>>,
    bias: Option<&[f32]>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    let (width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    q.check("queries", q_len, width);
    k.check("keys", kv_len, kv_width);
    v.check("values", kv_len, kv_width);
    let weighted = mask.into();
    let (mask, log_weights) = (weighted.mask, weighted.log_weights(kv_len));
    check_mask(mask, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    let layout = ChunkLayout::new(heads.head_dim);
    let chunks = kv_len.div_ceil(CHUNK);
    let head_floats = chunks * layout.len();
    let batch = (PACK_FLOATS / head_floats.max(1)).clamp(1, heads.kv_heads);
    let fill = |out: &Parts<MaybeUninit<f32>>| {
        scratch::with(batch * head_floats, |packed| {
            for first in (0..heads.kv_heads).step_by(batch) {
                let count = batch.min(heads.kv_heads - first);
                let parts = Parts::new(packed);
                pool.run(count * chunks, |index| {
                    let at = index * layout.len()..(index + 1) * layout.len();
                    // SAFETY: each chunk has its own place and task.
                    #[allow(unsafe_code)]
                    let chunk = unsafe { parts.part(at) };
                    let (head, from) = (first + index / chunks, index % chunks * CHUNK);
                    let positions = from..(from + CHUNK).min(kv_len);
                    layout.fill(chunk, k, v, head * heads.head_dim, positions);
                });
                let keys = Keys {
                    data: packed,
                    head_len: head_floats,
                    layout,
                    first,
                };
                let step = Step {
                    heads,
                    q,
                    q_len,
                    kv_len,
                    mask,
                    bias,
                    log_weights: log_weights.as_deref(),
                    scale,
                    out,
                    kernels: pool.kernels(),
                    times: None,
                };
                step.run(pool, keys, first..first + count);
            }
        });
    };
    // SAFETY: the steps store the results of all queries and heads.
    #[allow(unsafe_code)]
    unsafe {
        fresh(q_len * width, fill)
    }
}

/// Attention over a layer of the cache. `kv_len` positions must have been appended. Query `i` is at position
/// `kv_len - q_len + i`; with [`Mask::Causal`] it attends to all positions up to its own.
///
/// # Shapes
/// `q`: `q_len` rows of `heads * head_dim`; `bias`, added to the scaled scores: `[heads, q_len, kv_len]`;
/// result: `[q_len, heads * head_dim]`
///
/// # Panics
/// If the heads differ from those of the cache, `layer` or `kv_len` is out of range, the mask does not fit, or a
/// slice has the wrong length.
#[allow(clippy::too_many_arguments)]
pub fn cached_attention(
    pool: &ThreadPool,
    heads: Heads,
    q: Rows,
    q_len: usize,
    cache: &KvCache,
    layer: usize,
    kv_len: usize,
    mask: Mask,
    bias: Option<&[f32]>,
    scale: f32,
) -> Vec<f32> {
    heads.check();
    let width = heads.heads * heads.head_dim;
    cache.check_heads(heads, layer);
    assert!(
        kv_len <= cache.capacity(),
        "{kv_len} positions of {}",
        cache.capacity()
    );
    q.check("queries", q_len, width);
    check_mask(mask, q_len, kv_len);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.heads * q_len * kv_len, "bias");
    }
    // SAFETY: the step stores the results of all queries and heads.
    #[allow(unsafe_code)]
    unsafe {
        fresh(q_len * width, |out| {
            let step = Step {
                heads,
                q,
                q_len,
                kv_len,
                mask,
                bias,
                log_weights: None,
                scale,
                out,
                kernels: pool.kernels(),
                times: None,
            };
            match cache.keys(layer) {
                CachedKeys::Single(keys) => step.run(pool, keys, 0..heads.kv_heads),
                CachedKeys::Half(keys) => step.run(pool, keys, 0..heads.kv_heads),
            }
        })
    }
}
