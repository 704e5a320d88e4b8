//! The attention that each key receives, by burn operations on tiles of queries.

use std::ops::Range;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};

use crate::reference::split_heads;

/// Queries whose probabilities are in memory at once.
const TILE: usize = 128;
/// Difference that makes the exponential of the score of a masked key 0.
const MASKED: f32 = 1e30;

/// See [`KernelBackend::attention_received`](crate::KernelBackend::attention_received).
pub(crate) fn attention_received<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    heads: Heads,
    mask: WeightedMask<'_>,
    scale: f32,
) -> Tensor<B, 1> {
    let ([q_len, _], [kv_len, _], device) = (q.dims(), k.dims(), q.device());
    let row = |values: Vec<f32>| Tensor::<B, 1>::from_data(&values[..], &device).unsqueeze::<3>();
    let log_weights = mask.log_weights(kv_len).map(row);
    let visible = |query: usize| mask.mask.visible(query, q_len, kv_len);
    let q = split_heads(q, heads.heads, heads) * scale;
    let k = split_heads(k, heads.kv_heads, heads).swap_dims(1, 2);
    let mut received = Tensor::<B, 3>::zeros([1, 1, kv_len], &device);
    for queries in tiles(mask.mask, q_len) {
        // The bounds of the visible keys ascend with the query.
        let keys = visible(queries.start).start..visible(queries.end - 1).end;
        if keys.is_empty() {
            continue;
        }
        let q = q.clone().slice_dim(1, queries.clone());
        let mut scores = q.matmul(k.clone().slice_dim(2, keys.clone()));
        if let Some(log_weights) = &log_weights {
            scores = scores + log_weights.clone().slice_dim(2, keys.clone());
        }
        let same = queries.clone().all(|query| visible(query) == keys);
        let probabilities = if same {
            softmax(scores, 2)
        } else {
            let sees = queries
                .clone()
                .flat_map(|query| keys.clone().map(move |key| (query, key)))
                .map(|(query, key)| f32::from(visible(query).contains(&key)))
                .collect();
            let sees = TensorData::new::<f32, _>(sees, [1, queries.len(), keys.len()]);
            let sees = Tensor::<B, 3>::from_data(sees, &device);
            softmax(scores + (sees.clone() - 1.0) * MASKED, 2) * sees
        };
        let sum = probabilities.sum_dim(0).sum_dim(1);
        let place = [0..1, 0..1, keys];
        let sum = received.clone().slice(place.clone()) + sum;
        received = received.slice_assign(place, sum);
    }
    let counts = mask.mask.queries_per_key(q_len, kv_len);
    let shares = counts
        .iter()
        .map(|count| 1.0 / (heads.heads * count.max(&1)) as f32);
    (received * row(shares.collect())).reshape([kv_len])
}

/// Divides the queries into tiles. No tile crosses a segment boundary.
fn tiles(mask: Mask<'_>, q_len: usize) -> Vec<Range<usize>> {
    let whole = [0, q_len];
    let ends = if let Mask::Segments(ends) = mask {
        ends
    } else {
        &whole
    };
    let tiles_of = |segment: &[usize]| {
        let end = segment[1];
        let starts = (segment[0]..end).step_by(TILE);
        starts
            .map(move |start| start..end.min(start + TILE))
            .collect::<Vec<_>>()
    };
    ends.windows(2).flat_map(tiles_of).collect()
}
