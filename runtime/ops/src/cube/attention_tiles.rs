//! Attention of many queries by fragments ([`fragments`]): the kernel of
//! [`attention`](super::attention), with operands in half precision for the matrix operations of
//! tensor cores.
//!
//! A plane has 16 rows of queries. For every tile of keys it multiplies them with the keys, puts
//! the scores into shared memory, where two units of a row make weights of them, and multiplies the
//! weights with the values, 64 columns at a time. Sums over tiles stay in the units' registers: how
//! a fragment lies in registers is not known, so it could not be scaled there.

use cubecl::prelude::*;

use super::attention::{Operand, Options, Sizes, UNSEEN, seen};
use super::fragments::{self, ALIGNMENT, Four, Order, PLANE, SIDE};
use super::packed::{QUAD, Quad};
use super::products::{HALF_MAX, Products};

/// Units that share a row.
const SHARE: usize = PLANE / SIDE;
/// Columns that are multiplied at once with the weights.
const CHUNK: usize = 64;
/// Elements from one row to the next in a tile of scores, or of sums of a chunk. Eight more than
/// it is wide: the two units of four successive rows, which read 16 bytes each at once, then meet
/// all banks.
const SCORES_PITCH: usize = CHUNK + 8;
/// Elements of half precision that keep successive rows at different banks.
const PAD: usize = 8;

/// The size of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Planes, 16 rows each.
    planes: usize,
    /// Keys, at most [`CHUNK`].
    keys: usize,
    head_dim: usize,
}

impl Tile {
    /// The largest tile that takes at most `limit` bytes of shared memory and has less than half of
    /// its rows unused, if there is one.
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

    /// Elements of a head in shared memory: whole fragments.
    const fn width(&self) -> usize {
        self.head_dim.next_multiple_of(SIDE)
    }

    /// Elements from one query, key or value to the next in shared memory.
    const fn pitch(&self) -> usize {
        self.width() + PAD
    }

    /// Elements from one row of weights to the next.
    const fn weights_pitch(&self) -> usize {
        self.keys + PAD
    }

    const fn bytes(&self) -> usize {
        let half = (self.rows() + self.keys) * self.pitch() + self.rows() * self.weights_pitch();
        2 * half + 4 * (self.rows() * SCORES_PITCH + self.units())
    }
}

/// As [`attention_kernel`](super::attention): cube `[x, y, z]` has tile `x` of key head `y` and
/// part `z` of the keys.
#[cube(launch_unchecked)]
pub(super) fn tiles_kernel<S: Float, E: Float>(
    q: &Operand<f32>,
    k: &Operand<E>,
    v: &Operand<E>,
    bias: &Array<f32>,
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
    // Keys, then values.
    let size = comptime!(keys * pitch / QUAD);
    let mut side = SharedMemory::<Four<S>>::new_aligned(size, ALIGNMENT);
    let size = comptime!(tile.rows() * tile.weights_pitch() / QUAD);
    let mut weights = SharedMemory::<Four<S>>::new_aligned(size, ALIGNMENT);
    // Scores, then sums of a chunk of columns.
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

    // The unit's row, and which of the row's units it is.
    let (local, share) = (unit / SHARE, unit % SHARE);
    let row = first_row + local;
    let last = all_rows - 1;
    let sight = comptime!(options.sight);
    let (from, to) = seen(min(row, last) / sizes.group, ends, sizes, sight);
    // Later queries never see earlier keys than the first one, nor the last one fewer.
    let (mut key, _) = seen(first_row / sizes.group, ends, sizes, sight);
    let last_row = min(first_row + comptime!(tile.rows() - 1), last);
    let (_, mut end) = seen(last_row / sizes.group, ends, sizes, sight);
    if comptime!(options.split) {
        let part = CUBE_POS_Z as usize * sizes.part;
        key = max(key, part);
        end = min(end, part + sizes.part);
    }
    let to = min(to, end);

    // The unit's quads of its row's sums: every second one.
    let own = comptime!(quads / SHARE);
    let mut sums = Array::<Quad>::new(own);
    #[unroll]
    for i in 0..own {
        sums[i] = Quad::new(0.0f32);
    }
    let mut total = 0.0f32;
    let mut maximum = f32::new(UNSEEN);
    // The plane's first row.
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

        let mut highest = f32::new(UNSEEN);
        #[unroll]
        for i in 0..comptime!(keys / QUAD / SHARE) {
            let quad = i * SHARE + share;
            let mut four = scores[local * line + quad];
            #[unroll]
            for lane in 0..QUAD {
                let position = key + quad * QUAD + lane;
                let mut score = f32::new(UNSEEN);
                if position >= from && position < to && row < all_rows {
                    score = four[lane];
                    if comptime!(options.biased) {
                        let head = kv_head * sizes.group + row % sizes.group;
                        let of_query = head * sizes.queries + row / sizes.group;
                        score = max(score + bias[of_query * sizes.keys + position], UNSEEN);
                    }
                }
                four[lane] = score;
                highest = max(highest, score);
            }
            scores[local * line + quad] = four;
        }
        of_units[unit] = highest;
        // Nobody needs the keys any more.
        fill::<S, E>(&mut side, v, kv_head, key, end, tile);
        sync_cube();
        let before = maximum;
        #[unroll]
        for i in 0..SHARE {
            maximum = max(maximum, of_units[local * SHARE + i]);
        }
        let factor = f32::exp(before - maximum);
        total *= factor;
        #[unroll]
        for i in 0..comptime!(keys / QUAD / SHARE) {
            let quad = i * SHARE + share;
            let four = scores[local * line + quad];
            let mut rounded = Four::<S>::new(S::new(0.0));
            #[unroll]
            for lane in 0..QUAD {
                let weight = f32::exp(four[lane] - maximum);
                let weight = select(four[lane] > UNSEEN, weight, 0.0f32);
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
            for i in 0..comptime!(count * SIDE / QUAD / SHARE) {
                let at = comptime!(chunk * CHUNK / QUAD / SHARE + i);
                let part = scores[local * line + i * SHARE + share];
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
    for i in 0..SHARE {
        total += of_units[local * SHARE + i];
    }
    if row < all_rows {
        let head = kv_head * sizes.group + row % sizes.group;
        let mut place = row / sizes.group * sizes.heads + head;
        let mut factor = 1.0f32;
        if comptime!(options.split) {
            place += CUBE_POS_Z as usize * sizes.queries * sizes.heads;
            if share == 0 {
                stats[2 * place] = maximum;
                stats[2 * place + 1] = total;
            }
        } else if total > 0.0f32 {
            factor = 1.0f32 / total;
        }
        let head_dim = comptime!(tile.head_dim);
        #[unroll]
        for i in 0..own {
            let quad = i * SHARE + share;
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

/// Four elements of a head from `d` on, scaled; zeros beyond its last one.
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
        // Quads of most heads are whole: then one comparison does.
        let next = comptime!(if head_dim.is_multiple_of(QUAD) { 0 } else { i });
        if d + next < head_dim {
            let value = f32::cast_from(operand.data[from + d + i]) * scale;
            four[i] = S::cast_from(clamp(value, -HALF_MAX, HALF_MAX));
        }
    }
    four
}

/// Brings a tile of keys or values into shared memory; zeros from `end` on.
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
