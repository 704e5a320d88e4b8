//! Attention scores of one query over the cache.

use std::ops::Range;

use burn::tensor::f16;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::attention::Heads;

use super::operands::{Operand, OperandLaunch};
use crate::cube::cache::{CubeCache, Layer};
use crate::cube::tensor::{Rows, cubes};
use crate::stage;

const UNITS: usize = 128;

/// Computes the score of one head and key per unit.
#[cube(launch_unchecked)]
fn scores_kernel<E: Float>(
    q: &Array<f32>,
    k: &Operand<E>,
    out: &mut Array<f32>,
    first: usize,
    count: usize,
    heads: usize,
    group: usize,
    scale: f32,
    #[comptime] head_dim: usize,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at >= heads * count {
        terminate!();
    }
    let (head, key) = (at / count, at % count);
    let from = k.at(head / group, first + key);
    let mut sum = 0.0f32;
    for d in 0..head_dim {
        sum += q[head * head_dim + d] * f32::cast_from(k.data[from + d]);
    }
    out[at] = sum * scale;
}

/// Computes the scaled scores of a query for the positions `keys` of a layer: `[heads, keys]`.
pub(in crate::cube) fn scores<R: CubeRuntime>(
    q: &CubeTensor<R>,
    heads: Heads,
    cache: &CubeCache<R>,
    layer: usize,
    keys: Range<usize>,
    scale: f32,
) -> CubeTensor<R> {
    let (shape, q) = (cache.shape, Rows::of(q));
    assert!(
        heads.kv_heads == shape.kv_heads && heads.head_dim == shape.head_dim,
        "{heads:?} and {shape:?}"
    );
    assert!(
        !keys.is_empty() && keys.end <= shape.capacity,
        "keys {keys:?} of {shape:?}"
    );
    assert!(
        q.rows == 1 && heads.heads * heads.head_dim <= q.width,
        "{} queries of {}",
        q.rows,
        q.width
    );
    let out = Rows::empty(&q, heads.heads, keys.len());
    let head = shape.capacity * shape.head_dim;
    let (grid, dim) = (
        cubes((heads.heads * keys.len()).div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
    );
    let Layer { keys: k, half, .. } = cache.layer(layer);
    let group = heads.heads / heads.kv_heads;
    stage::launched();
    // SAFETY: units below `heads * keys` read a key below the capacity and one head of the query, and
    // write one score, as asserted above.
    #[allow(unsafe_code)]
    unsafe {
        if half {
            scores_kernel::launch_unchecked::<f16, R>(
                q.client(),
                grid,
                dim,
                q.arg(),
                OperandLaunch::new(k, 0, head, shape.head_dim),
                out.arg(),
                keys.start,
                keys.len(),
                heads.heads,
                group,
                scale,
                shape.head_dim,
            );
        } else {
            scores_kernel::launch_unchecked::<f32, R>(
                q.client(),
                grid,
                dim,
                q.arg(),
                OperandLaunch::new(k, 0, head, shape.head_dim),
                out.arg(),
                keys.start,
                keys.len(),
                heads.heads,
                group,
                scale,
                shape.head_dim,
            );
        }
    }
    out.into_tensor()
}
