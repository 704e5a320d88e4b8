//! Attention kernel for many queries by the matrix operations of tensor cores, with half-precision
//! operands ([`fragments`]).
//!
//! A plane computes 16 rows of queries. For each tile of keys it multiplies them by the keys and stores
//! the scores in shared memory, where two units per row convert them to attention weights. It then
//! multiplies the weights by the values, 64 columns at a time. Sums over tiles are kept in the units' own
//! registers, because the layout of a fragment in registers is unspecified and it could not be scaled
//! there.

use cubecl::prelude::*;

use super::operands::{MASKED, Operand, Options, Sizes, visible_keys};
use crate::cube::fragments::{self, ALIGNMENT, Four, Order};
use crate::cube::packed::{QUAD, Quad};
use crate::cube::products::{HALF_MAX, PLANE, Products, SIDE};

/// Units per row.
const ROW_UNITS: usize = PLANE / SIDE;
/// Columns of the values that are multiplied at once.
const CHUNK: usize = 64;
/// Elements from one row to the next in a tile of scores, or of sums of a chunk. Eight more than its
/// width, so that the two units of four successive rows, which read 16 bytes each at once, access all
/// banks.
const SCORES_PITCH: usize = CHUNK + 8;
/// Half-precision elements that pad rows, so that successive rows are in different banks.
const PAD: usize = 8;

/// The size of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Planes of 16 rows each.
    planes: usize,
    /// Keys, at most [`CHUNK`].
    keys: usize,
    head_dim: usize,
}

impl Tile {
    /// Returns the largest tile that takes at most `limit` bytes of shared memory and leaves less
    /// than half of its rows unused, if any.
    pub(super) fn of(limit: usize, rows: usize, head_dim: usize) -> Option<Self> {
        [(4, 64), (4, 32), (2, 32), (2, 16), (1, 32), (1, 16)]
            .into_iter()
            .map(|(planes, keys)| Self {
                planes,
                keys,
                head_dim,
            })
            .find(|tile| {
                let wasteful = tile.planes > 1 && tile.rows() >= 2 * rows.max(1);
                !wasteful && tile.bytes() <= limit
            })
    }

    pub(super) const fn rows(&self) -> usize {
        self.planes * SIDE
    }

    pub(super) const fn keys(&self) -> usize {
        self.keys
    }

    pub(super) const fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Returns the elements of a head in shared memory, rounded up to whole fragments.
    const fn width(&self) -> usize {
        self.head_dim.next_multiple_of(SIDE)
    }

    /// Returns the elements from one query, key or value to the next in shared memory.
    const fn pitch(&self) -> usize {
        self.width() + PAD
    }

    /// Returns the elements from one row of attention weights to the next.
    const fn weights_pitch(&self) -> usize {
        self.keys + PAD
    }

    const fn bytes(&self) -> usize {
        let half = (self.rows() + self.keys) * self.pitch() + self.rows() * self.weights_pitch();
        2 * half + 4 * (self.rows() * SCORES_PITCH + self.units())
    }
}

/// Computes a tile of attention, as [`attention_kernel`](super::plain::attention_kernel).
#[cube(launch_unchecked)]
pub(super) fn tiles_kernel<S: Float, E: Float>(
    q: &Operand<f32>,
    k: &Operand<E>,
    v: &Operand<E>,
    bias: &Array<f32>,
    log_weights: &Array<f32>,
    ends: &Array<u32>,
    out: &mut Array<f32>,
    stats: &mut Array<f32>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[comptime] options: Options,
    #[comptime] products: Products,
) {
    let (keys, width, pitch) = comptime!((tile.keys(), tile.width(), tile.pitch()));
    let units = comptime!(tile.units());
    let unit = UNIT_POS as usize;
    let kv_head = CUBE_POS_Y as usize;
    let first_row = CUBE_POS_X as usize * comptime!(tile.rows());
    let all_rows = sizes.queries * sizes.group;
    let size = comptime!(tile.rows() * pitch / QUAD);
    let mut queries = SharedMemory::<Four<S>>::new_aligned(size, ALIGNMENT);
    // Holds keys, then values.
    let size = comptime!(keys * pitch / QUAD);
    let mut side = SharedMemory::<Four<S>>::new_aligned(size, ALIGNMENT);
    let size = comptime!(tile.rows() * tile.weights_pitch() / QUAD);
    let mut weights = SharedMemory::<Four<S>>::new_aligned(size, ALIGNMENT);
    // Holds scores, then sums of a chunk of columns.
    let size = comptime!(tile.rows() * SCORES_PITCH / QUAD);
    let mut scores = SharedMemory::<Quad>::new_aligned(size, ALIGNMENT);
    let mut of_units = SharedMemory::<f32>::new(units);

    let quads = comptime!(width / QUAD);
    for at in range_stepped(unit, comptime!(tile.rows() * quads), units) {
        let row = first_row + at / quads;
        let mut four = Four::<S>::new(S::new(0.0));
        if row < all_rows {
            let from = q.at(kv_head * sizes.group + row % sizes.group, row / sizes.group);
            four = four_of::<S, f32>(q, from, at % quads * QUAD, sizes.scale, tile);
        }
        queries[at / quads * comptime!(pitch / QUAD) + at % quads] = four;
    }

    // Row of the unit, and its index among the units of the row.
    let (local, index) = (unit / ROW_UNITS, unit % ROW_UNITS);
    let row = first_row + local;
    let last = all_rows - 1;
    let mask = comptime!(options.mask);
    let (from, to) = visible_keys(min(row, last) / sizes.group, ends, sizes, mask);
    // The bounds of the visible keys ascend with the query.
    let (mut key, _) = visible_keys(first_row / sizes.group, ends, sizes, mask);
    let last_row = min(first_row + comptime!(tile.rows() - 1), last);
    let (_, mut end) = visible_keys(last_row / sizes.group, ends, sizes, mask);
    if comptime!(options.split) {
        let part = CUBE_POS_Z as usize * sizes.part;
        key = max(key, part);
        end = min(end, part + sizes.part);
    }
    let to = min(to, end);

    // The unit accumulates every second quad of its row.
    let own = comptime!(quads / ROW_UNITS);
    let mut sums = Array::<Quad>::new(own);
    #[unroll]
    for i in 0..own {
        sums[i] = Quad::new(0.0f32);
    }
    let mut total = 0.0f32;
    let mut maximum = f32::new(MASKED);
    // First row of the plane.
    let plane = unit / PLANE * SIDE;
    let line = comptime!(SCORES_PITCH / QUAD);
    while key < end {
        fill::<S, E>(&mut side, k, kv_head, key, end, tile);
        sync_cube();
        let mut dots = fragments::zeros(comptime!(keys / SIDE), products);
        #[unroll(products == Products::Matrix)]
        for d in 0..comptime!(width / SIDE) {
            let at = plane * pitch + d * SIDE;
            let a = fragments::left::<S>(&queries, at, pitch, Order::Rows, products);
            #[unroll]
            for c in 0..comptime!(keys / SIDE) {
                let at = c * SIDE * pitch + d * SIDE;
                let b = fragments::right::<S>(&side, at, pitch, Order::Columns, products);
                dots.add::<S>(c, &a, &b, products);
            }
        }
        #[unroll]
        for c in 0..comptime!(keys / SIDE) {
            let at = plane * SCORES_PITCH + c * SIDE;
            dots.store(c, &mut scores, at, SCORES_PITCH, products);
        }
        sync_cube();

        let mut tile_maximum = f32::new(MASKED);
        #[unroll]
        for i in 0..comptime!(keys / QUAD / ROW_UNITS) {
            let quad = i * ROW_UNITS + index;
            let mut four = scores[local * line + quad];
            #[unroll]
            for lane in 0..QUAD {
                let position = key + quad * QUAD + lane;
                let mut score = f32::new(MASKED);
                if position >= from && position < to && row < all_rows {
                    score = four[lane];
                    if comptime!(options.biased) {
                        let head = kv_head * sizes.group + row % sizes.group;
                        let of_query = head * sizes.queries + row / sizes.group;
                        score = max(score + bias[of_query * sizes.keys + position], MASKED);
                    }
                    if comptime!(options.weighted) {
                        score = max(score + log_weights[position], MASKED);
                    }
                }
                four[lane] = score;
                tile_maximum = max(tile_maximum, score);
            }
            scores[local * line + quad] = four;
        }
        of_units[unit] = tile_maximum;
        // Values replace the keys, which are no longer used.
        fill::<S, E>(&mut side, v, kv_head, key, end, tile);
        sync_cube();
        let before = maximum;
        #[unroll]
        for i in 0..ROW_UNITS {
            maximum = max(maximum, of_units[local * ROW_UNITS + i]);
        }
        let factor = f32::exp(before - maximum);
        total *= factor;
        #[unroll]
        for i in 0..comptime!(keys / QUAD / ROW_UNITS) {
            let quad = i * ROW_UNITS + index;
            let four = scores[local * line + quad];
            let mut rounded = Four::<S>::new(S::new(0.0));
            #[unroll]
            for lane in 0..QUAD {
                let weight = f32::exp(four[lane] - maximum);
                let weight = select(four[lane] > MASKED, weight, 0.0f32);
                total += weight;
                rounded[lane] = S::cast_from(weight);
            }
            weights[local * comptime!(tile.weights_pitch() / QUAD) + quad] = rounded;
        }
        sync_cube();
        #[unroll]
        for chunk in 0..comptime!(width.div_ceil(CHUNK)) {
            let count = comptime!((width - chunk * CHUNK).min(CHUNK) / SIDE);
            let mut parts = fragments::zeros(count, products);
            #[unroll(products == Products::Matrix)]
            for step in 0..comptime!(keys / SIDE) {
                let of_weights = comptime!(tile.weights_pitch());
                let at = plane * of_weights + step * SIDE;
                let a = fragments::left::<S>(&weights, at, of_weights, Order::Rows, products);
                #[unroll]
                for c in 0..count {
                    let at = step * SIDE * pitch + chunk * CHUNK + c * SIDE;
                    let b = fragments::right::<S>(&side, at, pitch, Order::Rows, products);
                    parts.add::<S>(c, &a, &b, products);
                }
            }
            #[unroll]
            for c in 0..count {
                let at = plane * SCORES_PITCH + c * SIDE;
                parts.store(c, &mut scores, at, SCORES_PITCH, products);
            }
            sync_cube();
            #[unroll]
            for i in 0..comptime!(count * SIDE / QUAD / ROW_UNITS) {
                let at = comptime!(chunk * CHUNK / QUAD / ROW_UNITS + i);
                let part = scores[local * line + i * ROW_UNITS + index];
                sums[at] = sums[at] * Quad::new(factor) + part;
            }
            sync_cube();
        }
        key += keys;
    }

    of_units[unit] = total;
    sync_cube();
    total = 0.0f32;
    #[unroll]
    for i in 0..ROW_UNITS {
        total += of_units[local * ROW_UNITS + i];
    }
    if row < all_rows {
        let head = kv_head * sizes.group + row % sizes.group;
        let mut place = row / sizes.group * sizes.heads + head;
        let mut factor = 1.0f32;
        if comptime!(options.split) {
            place += CUBE_POS_Z as usize * sizes.queries * sizes.heads;
            if index == 0 {
                stats[2 * place] = maximum;
                stats[2 * place + 1] = total;
            }
        } else if total > 0.0f32 {
            factor = 1.0f32 / total;
        }
        let head_dim = comptime!(tile.head_dim);
        #[unroll]
        for i in 0..own {
            let quad = i * ROW_UNITS + index;
            #[unroll]
            for lane in 0..QUAD {
                let d = quad * QUAD + lane;
                if d < head_dim {
                    out[place * head_dim + d] = sums[i][lane] * factor;
                }
            }
        }
    }
}

/// Returns four elements of a head from `d` on, scaled, with zeros past its last element.
#[cube]
fn four_of<S: Float, E: Float>(
    operand: &Operand<E>,
    from: usize,
    d: usize,
    scale: f32,
    #[comptime] tile: Tile,
) -> Four<S> {
    let head_dim = comptime!(tile.head_dim);
    let mut four = Four::<S>::new(S::new(0.0));
    #[unroll]
    for i in 0..QUAD {
        // One comparison is enough if the head is a multiple of a quad.
        let next = comptime!(if head_dim.is_multiple_of(QUAD) { 0 } else { i });
        if d + next < head_dim {
            let value = f32::cast_from(operand.data[from + d + i]) * scale;
            four[i] = S::cast_from(clamp(value, -HALF_MAX, HALF_MAX));
        }
    }
    four
}

/// Copies a tile of keys or values to shared memory, with zeros from `end` on.
#[cube]
fn fill<S: Float, E: Float>(
    side: &mut SharedMemory<Four<S>>,
    source: &Operand<E>,
    head: usize,
    first: usize,
    end: usize,
    #[comptime] tile: Tile,
) {
    let quads = comptime!(tile.width() / QUAD);
    let line = comptime!(tile.pitch() / QUAD);
    for at in range_stepped(
        UNIT_POS as usize,
        comptime!(tile.keys() * quads),
        comptime!(tile.units()),
    ) {
        let position = first + at / quads;
        let mut four = Four::<S>::new(S::new(0.0));
        if position < end {
            let from = source.at(head, position);
            four = four_of::<S, E>(source, from, at % quads * QUAD, 1.0f32, tile);
        }
        side[at / quads * line + at % quads] = four;
    }
}
