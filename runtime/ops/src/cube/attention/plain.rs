//! Attention kernel with multiply-adds in f32.

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

use super::operands::{MASKED, Operand, Options, Sizes, visible_keys};

/// Units across the keys, and then across the elements of a head.
const ACROSS: usize = 16;
/// Units across the rows.
const DOWN: usize = 8;
pub(super) const UNITS: usize = ACROSS * DOWN;
/// Shared memory per cube that every CUDA device provides by default.
const SHARED_BYTES: usize = 48 << 10;

/// The size of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Rows per unit.
    unit_rows: usize,
    /// Keys per unit.
    unit_keys: usize,
    head_dim: usize,
}

impl Tile {
    /// Returns the largest tile that fits the device and leaves less than half of its rows unused;
    /// `None` if the heads are too large for any tile.
    pub(super) fn of<R: CubeRuntime>(
        client: &ComputeClient<R>,
        rows: usize,
        head_dim: usize,
    ) -> Option<Self> {
        let limit = shared_bytes(client).min(SHARED_BYTES);
        [(4, 2), (4, 1), (2, 1), (1, 1)]
            .into_iter()
            .map(|(unit_rows, unit_keys)| Self {
                unit_rows,
                unit_keys,
                head_dim,
            })
            .find(|tile| {
                let wasteful = tile.unit_rows > 1 && tile.rows() >= 2 * rows.max(1);
                !wasteful && tile.bytes() <= limit
            })
    }

    pub(super) const fn rows(&self) -> usize {
        DOWN * self.unit_rows
    }

    pub(super) const fn keys(&self) -> usize {
        ACROSS * self.unit_keys
    }

    /// Returns the elements of a head that a unit accumulates.
    const fn unit_columns(&self) -> usize {
        self.head_dim.div_ceil(ACROSS)
    }

    /// Returns the elements from one key to the next in shared memory. Odd, so that units that read
    /// the same element of successive keys access different banks.
    const fn pitch(&self) -> usize {
        self.head_dim | 1
    }

    /// Returns the bytes of shared memory.
    const fn bytes(&self) -> usize {
        let elements = self.rows() * self.head_dim
            + self.keys() * self.pitch()
            + self.rows() * (self.keys() + 1)
            + 4 * self.rows();
        4 * elements
    }
}

/// Returns the shared memory per cube that the device can provide.
pub(super) fn shared_bytes<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    client.properties().hardware.max_shared_memory_size
}

/// Computes a tile of attention. Row `row` of the tile is query `row / group` of head `row % group` of
/// the group. Cube `[x, y, z]` computes tile `x` of key head `y` and part `z` of the keys.
#[cube(launch_unchecked)]
pub(super) fn attention_kernel<E: Float>(
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
) {
    let (unit_rows, unit_keys) = comptime!((tile.unit_rows, tile.unit_keys));
    let (rows, keys, head_dim) = comptime!((tile.rows(), tile.keys(), tile.head_dim));
    let (columns, pitch) = comptime!((tile.unit_columns(), tile.pitch()));
    let unit = UNIT_POS as usize;
    let (across, down) = (unit % ACROSS, unit / ACROSS);
    let first_row = CUBE_POS_X as usize * rows;
    let kv_head = CUBE_POS_Y as usize;
    let all_rows = sizes.queries * sizes.group;

    let mut queries = SharedMemory::<f32>::new(comptime!(rows * head_dim));
    let mut side = SharedMemory::<f32>::new(comptime!(keys * pitch));
    let mut scores = SharedMemory::<f32>::new(comptime!(rows * (keys + 1)));
    let mut maxima = SharedMemory::<f32>::new(rows);
    let mut factors = SharedMemory::<f32>::new(rows);
    let mut from = SharedMemory::<u32>::new(rows);
    let mut to = SharedMemory::<u32>::new(rows);

    for at in range_stepped(unit, comptime!(rows * head_dim), UNITS) {
        let row = first_row + at / head_dim;
        let mut value = 0.0f32;
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            value = q.data[q.at(head, row / sizes.group) + at % head_dim] * sizes.scale;
        }
        queries[at] = value;
    }
    if unit < rows {
        let query = min(first_row + unit, all_rows - 1) / sizes.group;
        let (first, end) = visible_keys(query, ends, sizes, comptime!(options.mask));
        from[unit] = first as u32;
        to[unit] = end as u32;
        maxima[unit] = f32::new(MASKED);
    }
    sync_cube();

    let mut sums = Array::<f32>::new(comptime!(unit_rows * columns));
    let mut totals = Array::<f32>::new(unit_rows);
    #[unroll]
    for i in 0..comptime!(unit_rows * columns) {
        sums[i] = 0.0f32;
    }
    #[unroll]
    for r in 0..unit_rows {
        totals[r] = 0.0f32;
    }
    // The bounds of the visible keys ascend with the query.
    let mut key = from[0] as usize;
    let mut end = to[comptime!(rows - 1)] as usize;
    if comptime!(options.split) {
        let part = CUBE_POS_Z as usize * sizes.part;
        key = max(key, part);
        end = min(end, part + sizes.part);
    }
    while key < end {
        fill(&mut side, k, kv_head, key, end, tile);
        sync_cube();
        let mut dots = Array::<f32>::new(comptime!(unit_rows * unit_keys));
        #[unroll]
        for i in 0..comptime!(unit_rows * unit_keys) {
            dots[i] = 0.0f32;
        }
        for d in 0..head_dim {
            #[unroll]
            for c in 0..unit_keys {
                let element = side[(across + c * ACROSS) * pitch + d];
                #[unroll]
                for r in 0..unit_rows {
                    dots[r * unit_keys + c] +=
                        element * queries[(down * unit_rows + r) * head_dim + d];
                }
            }
        }
        #[unroll]
        for r in 0..unit_rows {
            let local = down * unit_rows + r;
            #[unroll]
            for c in 0..unit_keys {
                let column = across + c * ACROSS;
                let position = key + column;
                let visible = position >= from[local] as usize
                    && position < min(to[local] as usize, end)
                    && first_row + local < all_rows;
                let mut score = f32::new(MASKED);
                if visible {
                    score = dots[r * unit_keys + c];
                    if comptime!(options.biased) {
                        let row = first_row + local;
                        let head = kv_head * sizes.group + row % sizes.group;
                        let line = head * sizes.queries + row / sizes.group;
                        score = max(score + bias[line * sizes.keys + position], MASKED);
                    }
                    if comptime!(options.weighted) {
                        score = max(score + log_weights[position], MASKED);
                    }
                }
                scores[local * comptime!(keys + 1) + column] = score;
            }
        }
        sync_cube();
        if unit < rows {
            let before = maxima[unit];
            let mut maximum = before;
            for column in 0..keys {
                maximum = max(maximum, scores[unit * comptime!(keys + 1) + column]);
            }
            maxima[unit] = maximum;
            factors[unit] = f32::exp(before - maximum);
        }
        // Values replace the keys, which are no longer used.
        fill(&mut side, v, kv_head, key, end, tile);
        sync_cube();
        #[unroll]
        for r in 0..unit_rows {
            let local = down * unit_rows + r;
            #[unroll]
            for c in 0..unit_keys {
                let at = local * comptime!(keys + 1) + across + c * ACROSS;
                let score = scores[at];
                let weight = f32::exp(score - maxima[local]);
                scores[at] = select(score > MASKED, weight, 0.0f32);
            }
        }
        sync_cube();
        #[unroll]
        for r in 0..unit_rows {
            let factor = factors[down * unit_rows + r];
            totals[r] *= factor;
            #[unroll]
            for i in 0..columns {
                sums[r * columns + i] *= factor;
            }
        }
        for column in 0..keys {
            #[unroll]
            for r in 0..unit_rows {
                let weight = scores[(down * unit_rows + r) * comptime!(keys + 1) + column];
                totals[r] += weight;
                #[unroll]
                for i in 0..columns {
                    // Past the last element of the head, the sum is not stored.
                    let d = min(across + i * ACROSS, comptime!(head_dim - 1));
                    sums[r * columns + i] += weight * side[column * pitch + d];
                }
            }
        }
        sync_cube();
        key += keys;
    }

    #[unroll]
    for r in 0..unit_rows {
        let local = down * unit_rows + r;
        let row = first_row + local;
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            let mut place = row / sizes.group * sizes.heads + head;
            let mut factor = 1.0f32;
            if comptime!(options.split) {
                place += CUBE_POS_Z as usize * sizes.queries * sizes.heads;
                if across == 0 {
                    stats[2 * place] = maxima[local];
                    stats[2 * place + 1] = totals[r];
                }
            } else if totals[r] > 0.0f32 {
                factor = 1.0f32 / totals[r];
            }
            #[unroll]
            for i in 0..columns {
                let d = across + i * ACROSS;
                if d < head_dim {
                    out[place * head_dim + d] = sums[r * columns + i] * factor;
                }
            }
        }
    }
}

/// Copies a tile of keys or values to shared memory, with zeros from `end` on.
#[cube]
fn fill<E: Float>(
    side: &mut SharedMemory<f32>,
    source: &Operand<E>,
    head: usize,
    first: usize,
    end: usize,
    #[comptime] tile: Tile,
) {
    let (keys, head_dim, pitch) = comptime!((tile.keys(), tile.head_dim, tile.pitch()));
    for at in range_stepped(UNIT_POS as usize, comptime!(keys * head_dim), UNITS) {
        let (key, d) = (at / head_dim, at % head_dim);
        let mut value = 0.0f32;
        if first + key < end {
            value = f32::cast_from(source.data[source.at(head, first + key) + d]);
        }
        side[key * pitch + d] = value;
    }
}

/// Returns `true` if heads of `head_dim` elements fit the device's shared memory.
pub(in crate::cube) fn fits<R: CubeRuntime>(client: &ComputeClient<R>, head_dim: usize) -> bool {
    Tile::of(client, 1, head_dim).is_some()
}
