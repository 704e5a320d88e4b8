//! An attention step: selection of the kernel, division of the keys, and launch.

use burn::tensor::f16;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};

use super::operands::{MASKED, MaskKind, OperandLaunch, Options, SizesLaunch};
use super::plain::{Tile, UNITS, attention_kernel, shared_bytes};
use super::tensor_cores::{self, tiles_kernel};
use crate::backend::KvStore;
use crate::cube::cache::{CubeCache, Layer};
use crate::cube::products::{Products, SIDE};
use crate::cube::tensor::{Rows, array, cubes, elements, floats, indices};
use crate::stage;

/// Number of cubes that occupies a device well.
const ENOUGH_CUBES: usize = 128;
/// Fewest keys per cube.
const SPLIT_KEYS: usize = 128;
/// Shared memory of a cube that uses tensor cores: a third of the 164 KiB of an Orin's
/// multiprocessor. Devices with tensor cores provide it on request.
const TILES_SHARED_BYTES: usize = 52 << 10;

/// Merges the partial results. Each is a sum of values weighted by `exp(score - max)`; the maximum and
/// the sum of the weights are in `stats`.
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
        let mut maximum = f32::new(MASKED);
        for part in 0..parts {
            maximum = max(maximum, stats[2 * (part * rows + row)]);
        }
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for part in 0..parts {
            let place = part * rows + row;
            let factor = f32::exp(stats[2 * place] - maximum);
            total += stats[2 * place + 1] * factor;
            sum += partial[place * head_dim + at % head_dim] * factor;
        }
        out[at] = select(total > 0.0f32, sum / total, 0.0f32);
    }
}

/// A tensor of queries, keys or values, and its first column.
type Part<'a, R> = (&'a CubeTensor<R>, usize);

/// Returns the heads in the columns of a tensor from `column` on.
fn operand<R: CubeRuntime>(
    rows: &Rows<R>,
    column: usize,
    head_dim: usize,
) -> OperandLaunch<f32, R> {
    OperandLaunch::new(rows.arg(), column, head_dim, rows.stride)
}

/// See [`KernelBackend::fused_attention`](crate::KernelBackend::fused_attention). `products` applies to
/// tiles of many queries.
#[expect(
    clippy::too_many_arguments,
    reason = "those of the operation and one more"
)]
pub(in crate::cube) fn fused<R: CubeRuntime>(
    q: Part<'_, R>,
    k: Part<'_, R>,
    v: Part<'_, R>,
    heads: Heads,
    mask: WeightedMask<'_>,
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
        mask: mask.mask,
        bias,
        log_weights: mask.log_weights(k.rows),
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

/// See [`KernelBackend::cached_attention`](crate::KernelBackend::cached_attention). The new tokens must
/// have been appended, but not yet counted in the length of the cache.
pub(in crate::cube) fn cached<R: CubeRuntime>(
    qkv: &CubeTensor<R>,
    heads: Heads,
    cache: &CubeCache<R>,
    layer: usize,
    mask: Mask<'_>,
    bias: Option<&CubeTensor<R>>,
    scale: f32,
) -> CubeTensor<R> {
    let q = Rows::of(qkv);
    let head = cache.shape.capacity * heads.head_dim;
    let step = Step {
        heads,
        queries: q.rows,
        keys: cache.len_of(layer) + q.rows,
        mask,
        bias,
        log_weights: None,
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

/// Operands common to all launches of a step.
struct Step<'a, R: CubeRuntime> {
    heads: Heads,
    queries: usize,
    keys: usize,
    mask: Mask<'a>,
    bias: Option<&'a CubeTensor<R>>,
    /// Logarithms of the weights of the keys.
    log_weights: Option<Vec<f32>>,
    scale: f32,
    products: Products,
    out: Rows<R>,
}

/// The kernel that computes a step, and its tile.
#[derive(Clone, Copy)]
enum Kernel {
    Plain(Tile),
    TensorCores(tensor_cores::Tile),
}

impl Kernel {
    /// Returns the rows of a tile.
    fn rows(self) -> usize {
        match self {
            Self::Plain(tile) => tile.rows(),
            Self::TensorCores(tile) => tile.rows(),
        }
    }

    /// Returns the keys of a tile.
    fn keys(self) -> usize {
        match self {
            Self::Plain(tile) => tile.keys(),
            Self::TensorCores(tile) => tile.keys(),
        }
    }
}

impl<R: CubeRuntime> Step<'_, R> {
    /// Launches the kernels.
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
        let (mask, ends) = match self.mask {
            Mask::Full => (MaskKind::Full, None),
            Mask::Causal => (MaskKind::Causal, None),
            Mask::Segments(ends) => {
                let ends: Vec<u32> = ends.iter().map(|&end| end as u32).collect();
                (MaskKind::Segments, Some(ends))
            }
            Mask::Ranges(ranges) => {
                let bounds = ranges.iter().flat_map(|range| [range.start, range.end]);
                let bounds = bounds.map(|bound| bound as u32).collect();
                (MaskKind::Ranges, Some(bounds))
            }
        };
        let options = Options {
            mask,
            biased: self.bias.is_some(),
            weighted: self.log_weights.is_some(),
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
        let weights = self.log_weights.as_deref();
        let weights = weights.map_or_else(unused, |weights| floats(&client, weights));
        let ends = ends.map_or_else(unused, |ends| indices(&client, &ends));
        let count = CubeCount::Static(tiles as u32, kv_heads as u32, parts as u32);
        stage::launched();
        match kernel {
            // SAFETY: the kernel accesses rows below `queries * group` and keys below `keys` only.
            #[allow(unsafe_code)]
            Kernel::Plain(tile) => unsafe {
                let dim = CubeDim::new_1d(UNITS as u32);
                attention_kernel::launch_unchecked::<E, R>(
                    &client, count, dim, q, k, v, bias, weights, ends, out, stats, sizes, tile,
                    options,
                );
            },
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Kernel::TensorCores(tile) => unsafe {
                let dim = CubeDim::new_1d(tile.units() as u32);
                let products = self.products;
                tiles_kernel::launch_unchecked::<f16, E, R>(
                    &client, count, dim, q, k, v, bias, weights, ends, out, stats, sizes, tile,
                    options, products,
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

    /// Selects the kernel for `rows` rows.
    fn kernel(&self, client: &ComputeClient<R>, rows: usize) -> Kernel {
        let head_dim = self.heads.head_dim;
        let limit = shared_bytes(client).min(TILES_SHARED_BYTES);
        let tile = match self.products {
            Products::Plain => None,
            // At least half of a fragment would be unused, as in decoding steps.
            Products::Matrix | Products::Emulated if rows <= SIDE / 2 => None,
            Products::Matrix | Products::Emulated => tensor_cores::Tile::of(limit, rows, head_dim),
        };
        let plain = || {
            Tile::of(client, rows, head_dim).unwrap_or_else(|| {
                panic!("heads of {head_dim} elements do not fit; `fits` must be checked first")
            })
        };
        tile.map_or_else(|| Kernel::Plain(plain()), Kernel::TensorCores)
    }

    /// Returns the keys per part, given the number of cubes without a division of the keys, and the
    /// keys of a tile.
    fn part(&self, cubes: usize, tile: usize) -> usize {
        let wanted = ENOUGH_CUBES.div_ceil(cubes.max(1));
        let part = match self.mask {
            Mask::Segments(_) => self.keys,
            Mask::Full | Mask::Causal | Mask::Ranges(_) => {
                self.keys.div_ceil(wanted).max(SPLIT_KEYS)
            }
        };
        part.max(1).next_multiple_of(tile)
    }
}
