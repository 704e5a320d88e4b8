//! Key-value cache in device memory.

use std::ops::Range;

use burn::tensor::{TensorMetadata, f16};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::features::TypeUsage;
use cubecl::prelude::*;
use cubecl::server::Handle;
use edge_lmm_kernels::attention::Heads;

use super::attention::plain::fits;
use super::memory;
use super::products::{HALF_MAX, Products, half};
use super::tensor::{Rows, array, array_of, cubes, elements};
use crate::backend::{CacheError, CacheShape, KvStore};
use crate::stage;
use crate::stored::StoredKeys;

const UNITS: usize = 256;

/// Keys and values, each `[kv_heads, capacity, head_dim]` per layer, in half precision if the shape allows
/// and the device supports it. All memory is allocated on creation; entries are never moved.
pub struct CubeCache<R: CubeRuntime> {
    pub(super) client: ComputeClient<R>,
    layers: Vec<(Handle, Handle)>,
    pub(super) shape: CacheShape,
    half: bool,
    products: Products,
    /// Positions in use, of each layer.
    lens: Vec<usize>,
}

/// Keys and values of a layer.
pub(super) struct Layer<R: CubeRuntime> {
    pub(super) keys: ArrayArg<R>,
    pub(super) values: ArrayArg<R>,
    /// `true` for half precision, `false` for f32.
    pub(super) half: bool,
}

impl<R: CubeRuntime> CubeCache<R> {
    /// Allocates the memory.
    pub(super) fn new(shape: CacheShape, device: &R::Device) -> Result<Self, CacheError> {
        memory::watch();
        Self::with_client(shape, R::client(device))
    }

    fn with_client(shape: CacheShape, client: ComputeClient<R>) -> Result<Self, CacheError> {
        if !fits(&client, shape.head_dim) {
            return Err(CacheError(format!(
                "heads of {} elements are too large for this device's kernels; use the CPU",
                shape.head_dim
            )));
        }
        let usage = client.properties().type_usage(half());
        let half = shape.quantized && usage.contains(TypeUsage::Buffer);
        let largest = client.properties().memory.max_page_size;
        let too_large = |reason: String| {
            CacheError(format!(
                "not enough device memory for keys and values of {} positions in {} layers: \
                 {reason}; use a shorter context",
                shape.capacity, shape.layers,
            ))
        };
        let bytes = (shape.kv_heads * shape.head_dim)
            .checked_mul(shape.capacity)
            .and_then(|elements| elements.checked_mul(element_bytes(half)))
            .filter(|bytes| *bytes as u64 <= largest)
            .ok_or_else(|| too_large(format!("one buffer holds at most {largest} bytes")))?;
        let layers = (0..shape.layers)
            .map(|_| (client.empty(bytes), client.empty(bytes)))
            .collect();
        // Allocation is asynchronous; this waits for its completion or failure.
        let allocated = client.flush();
        if let Some(failure) = memory::failure(&client) {
            let all = 2 * bytes * shape.layers;
            return Err(too_large(format!("{all} bytes in all, {failure}")));
        }
        allocated.map_err(|error| too_large(format!("{error:?}")))?;
        let products = match shape.quantized {
            true => Products::of(&client),
            false => Products::Plain,
        };
        Ok(Self {
            client,
            layers,
            shape,
            half,
            products,
            lens: vec![0; shape.layers],
        })
    }

    /// Selects the multiplication method.
    pub fn with_products(self, products: Products) -> Self {
        Self { products, ..self }
    }

    /// Returns the multiplication method.
    pub(super) fn products(&self) -> Products {
        self.products
    }

    fn check_room(&self, layer: usize, tokens: usize) {
        let (len, capacity) = (self.lens[layer], self.shape.capacity);
        assert!(
            tokens <= capacity - len,
            "{tokens} more positions after {len} of {capacity}"
        );
    }

    /// Returns the bytes of a position of a head.
    fn row_bytes(&self) -> usize {
        self.shape.head_dim * element_bytes(self.half)
    }

    fn elements(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim * self.shape.capacity
    }

    /// Returns the keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> Layer<R> {
        let (keys, values) = &self.layers[layer];
        let (len, size) = (self.elements(), element_bytes(self.half));
        Layer {
            keys: array_of(keys, len, size),
            values: array_of(values, len, size),
            half: self.half,
        }
    }

    /// Stores the keys and values of new tokens after the positions in use. If `rotation` (cosines and sines)
    /// is given, keys are rotated, and queries are rotated in place.
    pub(super) fn append(
        &mut self,
        qkv: &Rows<R>,
        heads: Heads,
        layer: usize,
        rotation: Option<(&CubeTensor<R>, &CubeTensor<R>)>,
    ) {
        let shape = self.shape;
        assert!(
            heads.kv_heads == shape.kv_heads && heads.head_dim == shape.head_dim,
            "{heads:?} and {shape:?}"
        );
        self.check_room(layer, qkv.rows);
        let width = shape.kv_heads * shape.head_dim;
        let column = heads.heads * heads.head_dim;
        assert!(column + 2 * width <= qkv.width, "rows of {}", qkv.width);
        let half = rotation.map_or(0, |(cos, _)| cos.shape()[1]);
        assert!(2 * half <= shape.head_dim, "{half} pairs in {heads:?}");
        let pairs = heads.heads * half;
        let count = qkv.rows * (pairs + width);
        if count == 0 {
            return;
        }
        let unused = || array(&self.client.empty(size_of::<f32>()), 1);
        let (cos, sin) = match rotation {
            Some((cos, sin)) => (elements(cos), elements(sin)),
            None => (unused(), unused()),
        };
        let place = PlaceLaunch::new(
            qkv.stride,
            column,
            width,
            shape.head_dim,
            half,
            pairs,
            shape.capacity,
            self.lens[layer],
            count,
        );
        let Layer { keys, values, .. } = self.layer(layer);
        let (cubes, dim) = (cubes(count.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32));
        let (client, qkv, rotated) = (&self.client, qkv.arg(), rotation.is_some());
        stage::launched();
        // SAFETY: units below `count` write one element of keys and values at positions below the
        // capacity, as asserted above, from rows that hold both, or rotate a pair of a query.
        #[allow(unsafe_code)]
        unsafe {
            if self.half {
                append_kernel::launch_unchecked::<f16, R>(
                    client, cubes, dim, qkv, cos, sin, keys, values, place, rotated, true,
                );
            } else {
                append_kernel::launch_unchecked::<f32, R>(
                    client, cubes, dim, qkv, cos, sin, keys, values, place, rotated, false,
                );
            }
        }
    }
}

impl<R: CubeRuntime> CubeCache<R> {
    /// Copies the positions in use into a cache for `capacity` positions, which must hold them.
    fn copy(&self, capacity: usize) -> Result<Self, CacheError> {
        let shape = CacheShape {
            capacity,
            ..self.shape
        };
        let copy = Self::with_client(shape, self.client.clone())?;
        for layer in 0..shape.layers {
            self.copy_layer(layer, &copy);
        }
        Ok(Self {
            lens: self.lens.clone(),
            products: self.products,
            ..copy
        })
    }

    /// Copies the positions in use of a layer into a larger cache of the same shape.
    fn copy_layer(&self, layer: usize, larger: &Self) {
        let head_dim = self.shape.head_dim;
        let used = self.lens[layer] * head_dim;
        let count = self.shape.kv_heads * used;
        if count == 0 {
            return;
        }
        let (old, new) = (self.layer(layer), larger.layer(layer));
        let (from, to) = (
            self.shape.capacity * head_dim,
            larger.shape.capacity * head_dim,
        );
        let (cubes, dim) = (cubes(count.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32));
        stage::launched();
        // SAFETY: units below `count` copy one element of a head's positions in use, which both
        // caches hold.
        #[allow(unsafe_code)]
        unsafe {
            if self.half {
                copy_heads_kernel::launch_unchecked::<f16, R>(
                    &self.client,
                    cubes,
                    dim,
                    old.keys,
                    old.values,
                    new.keys,
                    new.values,
                    used,
                    from,
                    to,
                    count,
                );
            } else {
                copy_heads_kernel::launch_unchecked::<f32, R>(
                    &self.client,
                    cubes,
                    dim,
                    old.keys,
                    old.values,
                    new.keys,
                    new.values,
                    used,
                    from,
                    to,
                    count,
                );
            }
        }
    }
}

const fn element_bytes(half: bool) -> usize {
    if half {
        size_of::<f16>()
    } else {
        size_of::<f32>()
    }
}

impl<R: CubeRuntime> KvStore for CubeCache<R> {
    fn layers(&self) -> usize {
        self.shape.layers
    }

    fn len_of(&self, layer: usize) -> usize {
        self.lens[layer]
    }

    fn capacity(&self) -> usize {
        self.shape.capacity
    }

    fn bytes(&self) -> usize {
        2 * self.shape.layers * self.elements() * element_bytes(self.half)
    }

    fn advance_layers(&mut self, layers: Range<usize>, tokens: usize) {
        for layer in layers {
            self.check_room(layer, tokens);
            self.lens[layer] += tokens;
        }
    }

    fn truncate_layers(&mut self, layers: Range<usize>, len: usize) {
        for held in &mut self.lens[layers] {
            *held = len.min(*held);
        }
    }

    fn grow(&mut self, capacity: usize) -> Result<(), CacheError> {
        if capacity <= self.shape.capacity {
            return Ok(());
        }
        *self = self.copy(capacity)?;
        Ok(())
    }

    fn fork(&self) -> Result<Self, CacheError> {
        self.copy(self.shape.capacity)
    }

    fn stored(&self, len: usize) -> Option<StoredKeys> {
        self.all_hold(len).then(|| StoredKeys {
            layers: self.shape.layers,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            element_bytes: element_bytes(self.half),
            len,
        })
    }

    fn layer_bytes(&self, layer: usize, len: usize) -> Result<Vec<u8>, CacheError> {
        let (row, capacity) = (self.row_bytes(), self.shape.capacity);
        let mut bytes = Vec::with_capacity(2 * self.shape.kv_heads * len * row);
        let (keys, values) = &self.layers[layer];
        for handle in [keys, values] {
            let all = self.client.read_one(handle.clone());
            let all = all.map_err(|error| CacheError(format!("{error:?}")))?;
            for head in 0..self.shape.kv_heads {
                bytes.extend_from_slice(&all[head * capacity * row..][..len * row]);
            }
        }
        Ok(bytes)
    }

    fn set_layer_bytes(&mut self, layer: usize, len: usize, bytes: &[u8]) {
        let (row, heads) = (self.row_bytes(), self.shape.kv_heads);
        let capacity = self.shape.capacity;
        let used = heads * len * row;
        let upload = |bytes: &[u8]| {
            let mut all = vec![0; heads * capacity * row];
            for head in 0..heads {
                let rows = &bytes[head * len * row..][..len * row];
                all[head * capacity * row..][..len * row].copy_from_slice(rows);
            }
            self.client.create_from_slice(&all)
        };
        self.layers[layer] = (upload(&bytes[..used]), upload(&bytes[used..2 * used]));
    }
}

/// Copies the first `used` elements of every head. Heads have `from` elements in the source and
/// `to` in the destination.
#[cube(launch_unchecked)]
fn copy_heads_kernel<E: Float>(
    old_keys: &Array<E>,
    old_values: &Array<E>,
    keys: &mut Array<E>,
    values: &mut Array<E>,
    used: usize,
    from: usize,
    to: usize,
    count: usize,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at >= count {
        terminate!();
    }
    let (head, element) = (at / used, at % used);
    keys[head * to + element] = old_keys[head * from + element];
    values[head * to + element] = old_values[head * from + element];
}

/// Source and destination of new keys and values.
#[derive(CubeType, CubeLaunch)]
struct Place {
    /// Elements from one token to the next.
    stride: usize,
    /// Column of the first key; the values follow the keys.
    column: usize,
    /// Elements of the keys of a token.
    width: usize,
    head_dim: usize,
    /// Rotated pairs per head.
    half: usize,
    /// Rotated pairs of the queries of a token.
    pairs: usize,
    capacity: usize,
    /// Positions in use.
    len: usize,
    /// Number of pairs to rotate and elements to copy.
    count: usize,
}

/// Rotates one pair of a query, or copies one element of keys and values, per unit.
#[cube(launch_unchecked)]
fn append_kernel<E: Float>(
    qkv: &mut Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    keys: &mut Array<E>,
    values: &mut Array<E>,
    place: &Place,
    #[comptime] rotated: bool,
    #[comptime] rounded: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at >= place.count {
        terminate!();
    }
    let of_token = place.pairs + place.width;
    let (token, item) = (at / of_token, at % of_token);
    let row = token * place.stride;
    if item < place.pairs {
        let (head, i) = (item / place.half, item % place.half);
        let angle = token * place.half + i;
        let first = row + head * place.head_dim + i;
        let second = first + place.half;
        let (a, b) = (qkv[first], qkv[second]);
        qkv[first] = a * cos[angle] - b * sin[angle];
        qkv[second] = b * cos[angle] + a * sin[angle];
    } else {
        let element = item - place.pairs;
        let (head, d) = (element / place.head_dim, element % place.head_dim);
        let from = row + place.column + element;
        let to = (head * place.capacity + place.len + token) * place.head_dim + d;
        let mut key = qkv[from];
        if comptime!(rotated) {
            if d < place.half {
                let angle = token * place.half + d;
                key = key * cos[angle] - qkv[from + place.half] * sin[angle];
            } else if d < 2 * place.half {
                let angle = token * place.half + d - place.half;
                key = key * cos[angle] + qkv[from - place.half] * sin[angle];
            }
        }
        keys[to] = stored::<E>(key, rounded);
        values[to] = stored::<E>(qkv[from + place.width], rounded);
    }
}

/// Converts a number for storage.
#[cube]
fn stored<E: Float>(value: f32, #[comptime] rounded: bool) -> E {
    if comptime!(rounded) {
        E::cast_from(clamp(value, -HALF_MAX, HALF_MAX))
    } else {
        E::cast_from(value)
    }
}
