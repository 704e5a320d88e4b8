//! Flash attention (Dao et al. 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)): tiles
//! of queries go through tiles of keys and values with an online softmax, so that no matrix of
//! scores is ever in memory.
//!
//! A tile's rows are queries times the heads that share a key head, so that keys are read once for
//! all of them. A few queries with many keys, as in decoding, do not fill a GPU: then the keys are
//! split among cubes and the parts' results are merged.
//!
//! Many queries that may be rounded to half precision go through tensor cores, where the device has
//! them ([`attention_tiles`](super::attention_tiles)); all others, and steps of decoding, which are
//! bound by the bytes of keys and values, through multiply-adds in f32.

use burn::tensor::f16;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use edge_lmm_kernels::attention::{Heads, Mask};

use super::attention_tiles::{self, tiles_kernel};
use super::cache::{CubeCache, Layer};
use super::fragments::SIDE;
use super::products::Products;
use super::tensor::{Rows, array, cubes, elements, indices};
use crate::backend::KvStore;
use crate::stage;

/// Units side by side over keys, then over the elements of a head.
const ACROSS: usize = 16;
/// Groups of rows, one below the other.
const DOWN: usize = 8;
const UNITS: usize = ACROSS * DOWN;
/// Cubes that fill a device well enough.
const ENOUGH_CUBES: usize = 128;
/// Fewest keys that are worth a cube of their own.
const SPLIT_KEYS: usize = 128;
/// Score of a key that is not seen; nothing lower is told apart.
pub(super) const UNSEEN: f32 = -1e30;
/// Shared memory that every CUDA device gives a cube without being asked for more.
const SHARED_BYTES: usize = 48 << 10;
/// Shared memory of a cube that uses tensor cores: of the 164 KiB of an Orin's multiprocessor,
/// three cubes have so much each. Devices with tensor cores give it when asked.
const TILES_SHARED_BYTES: usize = 52 << 10;

/// The size of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// Rows of a unit.
    unit_rows: usize,
    /// Keys of a unit.
    unit_keys: usize,
    head_dim: usize,
}

impl Tile {
    /// The largest tile that fits the device and has less than half of its rows unused; `None`
    /// where heads are too large for any.
    fn of<R: CubeRuntime>(client: &ComputeClient<R>, rows: usize, head_dim: usize) -> Option<Self> {
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

    const fn rows(&self) -> usize {
        DOWN * self.unit_rows
    }

    const fn keys(&self) -> usize {
        ACROSS * self.unit_keys
    }

    /// Elements of a head that a unit sums.
    const fn unit_columns(&self) -> usize {
        self.head_dim.div_ceil(ACROSS)
    }

    /// Elements from one key to the next in shared memory. Odd, so that units that read the same
    /// element of successive keys meet different banks.
    const fn pitch(&self) -> usize {
        self.head_dim | 1
    }

    /// Bytes of shared memory.
    const fn bytes(&self) -> usize {
        let elements = self.rows() * self.head_dim
            + self.keys() * self.pitch()
            + self.rows() * (self.keys() + 1)
            + 4 * self.rows();
        4 * elements
    }
}

/// Shared memory that the device can give a cube.
fn shared_bytes<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    client.properties().hardware.max_shared_memory_size
}

/// Which keys a query sees; see [`Mask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sight {
    Full,
    Segments,
    Causal,
}

/// Options of the kernel that are known when it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Options {
    pub(super) sight: Sight,
    pub(super) biased: bool,
    /// Whether results are those of a part of the keys.
    pub(super) split: bool,
}

/// Heads in memory: element `d` of head `h` at position `p` is
/// `data[column + h * head + p * position + d]`.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Operand<E: Float> {
    pub(super) data: Array<E>,
    column: usize,
    head: usize,
    position: usize,
}

#[cube]
impl<E: Float> Operand<E> {
    pub(super) fn at(&self, head: usize, position: usize) -> usize {
        self.column + head * self.head + position * self.position
    }
}

/// Sizes of a step.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Query heads that share a key head.
    pub(super) group: usize,
    /// Keys of a part.
    pub(super) part: usize,
    /// Elements of the segments' ends.
    ends: usize,
    pub(super) scale: f32,
}

/// A tile's rows: grouped queries `row` is query `row / group` of head `row % group` of the group.
/// Cube `[x, y, z]` has tile `x` of key head `y` and part `z` of the keys.
#[cube(launch_unchecked)]
fn attention_kernel<E: Float>(
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
        let (first, end) = seen(query, ends, sizes, comptime!(options.sight));
        from[unit] = first as u32;
        to[unit] = end as u32;
        maxima[unit] = f32::new(UNSEEN);
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
    // Later queries never see earlier keys than the first one, nor the last one fewer.
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
                let sees = position >= from[local] as usize
                    && position < min(to[local] as usize, end)
                    && first_row + local < all_rows;
                let mut score = f32::new(UNSEEN);
                if sees {
                    score = dots[r * unit_keys + c];
                    if comptime!(options.biased) {
                        let row = first_row + local;
                        let head = kv_head * sizes.group + row % sizes.group;
                        let line = head * sizes.queries + row / sizes.group;
                        score = max(score + bias[line * sizes.keys + position], UNSEEN);
                    }
                }
                scores[local * comptime!(keys + 1) + column] = score;
            }
        }
        sync_cube();
        if unit < rows {
            let before = maxima[unit];
            let mut highest = before;
            for column in 0..keys {
                highest = max(highest, scores[unit * comptime!(keys + 1) + column]);
            }
            maxima[unit] = highest;
            factors[unit] = f32::exp(before - highest);
        }
        // Nobody needs the keys any more.
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
                scores[at] = select(score > UNSEEN, weight, 0.0f32);
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
                    // Beyond a head's last element there is the next key's: a sum nobody stores.
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

/// The keys that a query sees: the first, and the one behind the last.
#[cube]
pub(super) fn seen(
    query: usize,
    ends: &Array<u32>,
    sizes: &Sizes,
    #[comptime] sight: Sight,
) -> (usize, usize) {
    let mut first = 0usize;
    let mut end = sizes.keys;
    match sight {
        Sight::Full => {}
        Sight::Causal => {
            end = sizes.keys - sizes.queries + query + 1;
        }
        Sight::Segments => {
            for i in 0..sizes.ends - 1 {
                if ends[i] as usize <= query {
                    first = ends[i] as usize;
                    end = ends[i + 1] as usize;
                }
            }
        }
    }
    (first, end)
}

/// Brings a tile of keys or values into shared memory; zeros from `end` on.
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

/// Merges the results of the parts: every one is a sum of values weighted by `exp(score - max)`,
/// with that maximum and the sum of the weights in `stats`.
#[cube(launch_unchecked)]
fn merge_kernel(
    partial: &Array<f32>,
    stats: &Array<f32>,
    out: &mut Array<f32>,
    parts: usize,
    rows: usize,
    #[comptime] head_dim: usize,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < rows * head_dim {
        let row = at / head_dim;
        let mut highest = f32::new(UNSEEN);
        for part in 0..parts {
            highest = max(highest, stats[2 * (part * rows + row)]);
        }
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for part in 0..parts {
            let place = part * rows + row;
            let factor = f32::exp(stats[2 * place] - highest);
            total += stats[2 * place + 1] * factor;
            sum += partial[place * head_dim + at % head_dim] * factor;
        }
        out[at] = select(total > 0.0f32, sum / total, 0.0f32);
    }
}

/// Whether heads of that size fit the device's shared memory.
pub(super) fn fits<R: CubeRuntime>(client: &ComputeClient<R>, head_dim: usize) -> bool {
    Tile::of(client, 1, head_dim).is_some()
}

/// A tensor of queries, keys or values and the column it begins at.
type Part<'a, R> = (&'a CubeTensor<R>, usize);

fn operand<R: CubeRuntime>(
    rows: &Rows<R>,
    column: usize,
    head_dim: usize,
) -> OperandLaunch<f32, R> {
    OperandLaunch::new(rows.arg(), column, head_dim, rows.stride)
}

/// See [`KernelBackend::fused_attention`](crate::KernelBackend::fused_attention); `products` is how
/// tiles of many queries are multiplied.
#[expect(
    clippy::too_many_arguments,
    reason = "the operation's own and one more"
)]
pub(super) fn fused<R: CubeRuntime>(
    q: Part<'_, R>,
    k: Part<'_, R>,
    v: Part<'_, R>,
    heads: Heads,
    mask: Mask<'_>,
    bias: Option<&CubeTensor<R>>,
    scale: f32,
    products: Products,
) -> CubeTensor<R> {
    let [(q, q_column), (k, k_column), (v, v_column)] =
        [q, k, v].map(|(tensor, column)| (Rows::of(tensor), column));
    let (q_width, kv_width) = (
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
    );
    assert!(
        q_column + q_width <= q.width
            && k_column + kv_width <= k.width
            && v_column + kv_width <= v.width
            && k.rows == v.rows,
        "{heads:?} in rows of {}, {} and {}",
        q.width,
        k.width,
        v.width
    );
    let step = Step {
        heads,
        queries: q.rows,
        keys: k.rows,
        mask,
        bias,
        scale,
        products,
        out: Rows::empty(&q, q.rows, q_width),
    };
    step.run::<f32>(
        operand(&q, q_column, heads.head_dim),
        operand(&k, k_column, heads.head_dim),
        operand(&v, v_column, heads.head_dim),
    )
}

/// See [`KernelBackend::cached_attention`](crate::KernelBackend::cached_attention); the new tokens
/// have been appended, but not counted.
pub(super) fn cached<R: CubeRuntime>(
    qkv: &CubeTensor<R>,
    heads: Heads,
    cache: &CubeCache<R>,
    layer: usize,
    bias: Option<&CubeTensor<R>>,
    scale: f32,
) -> CubeTensor<R> {
    let q = Rows::of(qkv);
    let head = cache.shape.capacity * heads.head_dim;
    let step = Step {
        heads,
        queries: q.rows,
        keys: cache.len() + q.rows,
        mask: Mask::Causal,
        bias,
        scale,
        products: cache.products(),
        out: Rows::empty(&q, q.rows, heads.heads * heads.head_dim),
    };
    let q = operand(&q, 0, heads.head_dim);
    let Layer { keys, values, half } = cache.layer(layer);
    if half {
        step.run::<f16>(
            q,
            OperandLaunch::new(keys, 0, head, heads.head_dim),
            OperandLaunch::new(values, 0, head, heads.head_dim),
        )
    } else {
        step.run::<f32>(
            q,
            OperandLaunch::new(keys, 0, head, heads.head_dim),
            OperandLaunch::new(values, 0, head, heads.head_dim),
        )
    }
}

/// What all launches of a step have in common.
struct Step<'a, R: CubeRuntime> {
    heads: Heads,
    queries: usize,
    keys: usize,
    mask: Mask<'a>,
    bias: Option<&'a CubeTensor<R>>,
    scale: f32,
    products: Products,
    out: Rows<R>,
}

/// Which kernel computes a step, and its tiles.
#[derive(Clone, Copy)]
enum Kernel {
    Plain(Tile),
    Tiles(attention_tiles::Tile),
}

impl Kernel {
    fn rows(self) -> usize {
        match self {
            Self::Plain(tile) => tile.rows(),
            Self::Tiles(tile) => tile.rows(),
        }
    }

    fn keys(self) -> usize {
        match self {
            Self::Plain(tile) => tile.keys(),
            Self::Tiles(tile) => tile.keys(),
        }
    }
}

impl<R: CubeRuntime> Step<'_, R> {
    fn run<E: Float>(
        self,
        q: OperandLaunch<f32, R>,
        k: OperandLaunch<E, R>,
        v: OperandLaunch<E, R>,
    ) -> CubeTensor<R> {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        if self.queries == 0 {
            return self.out.into_tensor();
        }
        let client = self.out.client().clone();
        let rows = self.queries * heads / kv_heads;
        let kernel = self.kernel(&client, rows);
        let tiles = rows.div_ceil(kernel.rows());
        let part = self.part(tiles * kv_heads, kernel.keys());
        let parts = self.keys.div_ceil(part).max(1);
        let (sight, ends) = match self.mask {
            Mask::Full => (Sight::Full, None),
            Mask::Causal => (Sight::Causal, None),
            Mask::Segments(ends) => {
                let ends: Vec<u32> = ends.iter().map(|&end| end as u32).collect();
                (Sight::Segments, Some(ends))
            }
        };
        let options = Options {
            sight,
            biased: self.bias.is_some(),
            split: parts > 1,
        };
        let unused = || array(&client.empty(size_of::<f32>()), 1);
        let all_rows = self.queries * heads;
        let partial = (parts > 1).then(|| {
            let bytes = parts * all_rows * size_of::<f32>();
            (client.empty(bytes * head_dim), client.empty(2 * bytes))
        });
        let (out, stats) = match &partial {
            Some((sums, stats)) => (
                array(sums, parts * all_rows * head_dim),
                array(stats, 2 * parts * all_rows),
            ),
            None => (self.out.arg(), unused()),
        };
        let sizes = SizesLaunch::new(
            self.queries,
            self.keys,
            heads,
            heads / kv_heads,
            part,
            ends.as_ref().map_or(0, Vec::len),
            self.scale,
        );
        let bias = self.bias.map_or_else(unused, elements);
        let ends = ends.map_or_else(unused, |ends| indices(&client, &ends));
        let count = CubeCount::Static(tiles as u32, kv_heads as u32, parts as u32);
        stage::launched();
        match kernel {
            // SAFETY: rows below `queries * group` are read and stored, and keys below `keys`.
            #[allow(unsafe_code)]
            Kernel::Plain(tile) => unsafe {
                let dim = CubeDim::new_1d(UNITS as u32);
                attention_kernel::launch_unchecked::<E, R>(
                    &client, count, dim, q, k, v, bias, ends, out, stats, sizes, tile, options,
                );
            },
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Kernel::Tiles(tile) => unsafe {
                let dim = CubeDim::new_1d(tile.units() as u32);
                let products = self.products;
                tiles_kernel::launch_unchecked::<f16, E, R>(
                    &client, count, dim, q, k, v, bias, ends, out, stats, sizes, tile, options,
                    products,
                );
            },
        }
        if let Some((sums, stats)) = partial {
            stage::launched();
            // SAFETY: units below `rows * head_dim` read all parts of their element and store it.
            #[allow(unsafe_code)]
            unsafe {
                merge_kernel::launch_unchecked::<R>(
                    &client,
                    cubes((all_rows * head_dim).div_ceil(UNITS)),
                    CubeDim::new_1d(UNITS as u32),
                    array(&sums, parts * all_rows * head_dim),
                    array(&stats, 2 * parts * all_rows),
                    self.out.arg(),
                    parts,
                    all_rows,
                    head_dim,
                );
            }
        }
        self.out.into_tensor()
    }

    /// The kernel for `rows` rows.
    fn kernel(&self, client: &ComputeClient<R>, rows: usize) -> Kernel {
        let head_dim = self.heads.head_dim;
        let limit = shared_bytes(client).min(TILES_SHARED_BYTES);
        let tile = match self.products {
            Products::Plain => None,
            // Half of a fragment or more would be unused, as in steps of decoding.
            _ if rows <= SIDE / 2 => None,
            _ => attention_tiles::Tile::of(limit, rows, head_dim),
        };
        let plain = || {
            Tile::of(client, rows, head_dim).unwrap_or_else(|| {
                panic!("heads of {head_dim} elements, which do not fit, were to be refused before")
            })
        };
        tile.map_or_else(|| Kernel::Plain(plain()), Kernel::Tiles)
    }

    /// Keys of a part, if `cubes` cubes would go through all keys otherwise, `tile` at once.
    fn part(&self, cubes: usize, tile: usize) -> usize {
        let wanted = ENOUGH_CUBES.div_ceil(cubes.max(1));
        let part = match self.mask {
            Mask::Segments(_) => self.keys,
            Mask::Full | Mask::Causal => self.keys.div_ceil(wanted).max(SPLIT_KEYS),
        };
        part.max(1).next_multiple_of(tile)
    }
}
