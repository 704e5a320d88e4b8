//! The keys and values of past positions, in device memory.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use cubecl::server::Handle;
use edge_lmm_kernels::attention::Heads;

use super::attention;
use super::tensor::{Rows, array, cubes};
use crate::backend::{CacheError, CacheShape, KvStore};

const UNITS: usize = 256;

/// Keys and values, each `[kv_heads, capacity, head_dim]` per layer. All memory is taken at the
/// beginning; new positions are written where they belong and nothing is ever moved.
pub struct CubeCache<R: CubeRuntime> {
    pub(super) client: ComputeClient<R>,
    layers: Vec<(Handle, Handle)>,
    pub(super) shape: CacheShape,
    len: usize,
}

impl<R: CubeRuntime> CubeCache<R> {
    /// Takes the memory.
    pub(super) fn new(shape: CacheShape, device: &R::Device) -> Result<Self, CacheError> {
        let client = R::client(device);
        if !attention::fits(&client, shape.head_dim) {
            return Err(CacheError(format!(
                "heads of {} elements are too large for this device's kernels; use --device cpu",
                shape.head_dim
            )));
        }
        let largest = client.properties().memory.max_page_size;
        let too_large = |reason: String| {
            CacheError(format!(
                "no memory on the device for keys and values of {} positions ({} bytes in {} \
                 layers): {reason}; use a shorter context",
                shape.capacity,
                shape.bytes(),
                shape.layers,
            ))
        };
        let bytes = (shape.kv_heads * shape.head_dim)
            .checked_mul(shape.capacity)
            .and_then(|elements| elements.checked_mul(size_of::<f32>()))
            .filter(|bytes| *bytes as u64 <= largest)
            .ok_or_else(|| too_large(format!("one buffer holds at most {largest} bytes")))?;
        let layers = (0..shape.layers)
            .map(|_| (client.empty(bytes), client.empty(bytes)))
            .collect();
        // Memory is taken asynchronously; this asks whether it could be had.
        client
            .flush()
            .map_err(|error| too_large(format!("{error:?}")))?;
        Ok(Self {
            client,
            layers,
            shape,
            len: 0,
        })
    }

    fn elements(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim * self.shape.capacity
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (ArrayArg<R>, ArrayArg<R>) {
        let (keys, values) = &self.layers[layer];
        (array(keys, self.elements()), array(values, self.elements()))
    }

    /// Writes keys and values of new tokens behind the positions held.
    pub(super) fn append(&mut self, qkv: &CubeTensor<R>, heads: Heads, layer: usize) {
        let qkv = Rows::of(qkv);
        let shape = self.shape;
        assert!(
            heads.kv_heads == shape.kv_heads && heads.head_dim == shape.head_dim,
            "{heads:?} and {shape:?}"
        );
        assert!(
            qkv.rows <= shape.capacity - self.len,
            "{} more positions after {} of {}",
            qkv.rows,
            self.len,
            shape.capacity
        );
        let width = shape.kv_heads * shape.head_dim;
        let column = heads.heads * heads.head_dim;
        assert!(column + 2 * width <= qkv.width, "rows of {}", qkv.width);
        let count = qkv.rows * width;
        if count == 0 {
            return;
        }
        let (keys, values) = self.layer(layer);
        // SAFETY: units below `count` write keys and values of one element at positions below the
        // capacity, as asserted above, and read rows that hold both.
        #[allow(unsafe_code)]
        unsafe {
            append_kernel::launch_unchecked::<R>(
                &self.client,
                cubes(count.div_ceil(UNITS)),
                CubeDim::new_1d(UNITS as u32),
                qkv.arg(),
                keys,
                values,
                PlaceLaunch::new(
                    qkv.stride,
                    column,
                    width,
                    shape.head_dim,
                    shape.capacity,
                    self.len,
                    count,
                ),
            );
        }
    }
}

impl<R: CubeRuntime> KvStore for CubeCache<R> {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.shape.capacity
    }

    fn bytes(&self) -> usize {
        self.shape.bytes()
    }

    fn advance(&mut self, tokens: usize) {
        let room = self.shape.capacity - self.len;
        assert!(tokens <= room, "{tokens} more positions of {room}");
        self.len += tokens;
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Where new keys and values come from and go to.
#[derive(CubeType, CubeLaunch)]
struct Place {
    /// Elements from one token to the next.
    stride: usize,
    /// The first key's column; values follow keys.
    column: usize,
    /// Elements of a token's keys.
    width: usize,
    head_dim: usize,
    capacity: usize,
    /// Positions held.
    len: usize,
    /// Elements to copy.
    count: usize,
}

#[cube(launch_unchecked)]
fn append_kernel(qkv: &Array<f32>, keys: &mut Array<f32>, values: &mut Array<f32>, place: &Place) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < place.count {
        let (token, element) = (at / place.width, at % place.width);
        let (head, d) = (element / place.head_dim, element % place.head_dim);
        let from = token * place.stride + place.column + element;
        let to = (head * place.capacity + place.len + token) * place.head_dim + d;
        keys[to] = qkv[from];
        values[to] = qkv[from + place.width];
    }
}
