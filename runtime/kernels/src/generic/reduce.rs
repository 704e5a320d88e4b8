//! Reductions in a fixed order of operations.

// Lanes are indexed in parallel.
#![allow(clippy::needless_range_loop)]

/// Number of partial sums of a reduction. It is fixed, so that the order of additions is the same for
/// every instruction set.
pub(super) const LANES: usize = 16;

/// Folds `add(sum, x)` over all elements in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(super) fn reduce(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = add(lanes[i], x[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *x);
    }
    fold(lanes, |a, b| a + b)
}

/// Combines the lanes pairwise: lane `i` with lane `i + 8`, and so on.
#[inline(always)]
pub(super) fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut eight = [0f32; 8];
    for i in 0..8 {
        eight[i] = combine(lanes[i], lanes[i + 8]);
    }
    let mut four = [0f32; 4];
    for i in 0..4 {
        four[i] = combine(eight[i], eight[i + 4]);
    }
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}
