//! The trait that a device implements to run the models.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask};
use edge_lmm_kernels::format::MatrixShape;

/// Columns `column..` of a `[tokens, width]` tensor: one part of a fused projection.
pub struct Part<'a, B: Backend> {
    /// The whole tensor.
    pub tensor: &'a FloatTensor<B>,
    /// First column of the part.
    pub column: usize,
}

/// A packed matrix with its bias.
pub struct Packed<'a, B: Backend> {
    /// The packed bytes.
    pub weight: &'a IntTensor<B>,
    /// What they hold.
    pub shape: MatrixShape,
    /// `[shape.rows]`
    pub bias: Option<&'a FloatTensor<B>>,
}

/// The size of a key-value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions that fit.
    pub capacity: usize,
    /// Whether the weights that make keys and values are 8 bits or fewer anyway: a device may keep
    /// keys and values in half precision then, and round queries to it.
    pub quantized: bool,
}

impl CacheShape {
    /// Bytes of the keys and values.
    pub fn bytes(&self) -> usize {
        let elements = self.layers * self.kv_heads * self.head_dim * self.capacity;
        2 * if self.quantized { 2 } else { 4 } * elements
    }
}

/// An allocation that failed on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFailure {
    /// Bytes asked for, where the device tells.
    pub asked: Option<u64>,
    /// Bytes that this program holds on the device, where the device tells.
    pub held: Option<u64>,
    /// Bytes that are free on the device, where somebody has asked it.
    pub free: Option<u64>,
}

impl std::fmt::Display for MemoryFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = |n: Option<u64>| n.map_or("an unknown number of".to_owned(), |n| n.to_string());
        write!(
            f,
            "{} bytes were asked for, {} are held",
            bytes(self.asked),
            bytes(self.held)
        )?;
        match self.free {
            Some(free) => write!(f, ", {free} are free"),
            None => Ok(()),
        }
    }
}

/// Why a key-value cache could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheError(pub String);

impl std::fmt::Display for CacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CacheError {}

/// The place of the highest of some scores, the first one among equals; `None` if one is not a
/// number, or there is none.
pub fn highest_score(scores: &[f32]) -> Option<u32> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    (0..)
        .zip(scores)
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
        .map(|(id, _)| id)
}

/// Keys and values of past positions, allocated once and filled in place.
pub trait KvStore {
    /// Positions held.
    fn len(&self) -> usize;
    /// Whether nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Positions that fit.
    fn capacity(&self) -> usize;
    /// Bytes allocated.
    fn bytes(&self) -> usize;
    /// Makes the `tokens` positions that every layer has just appended part of the past.
    fn advance(&mut self, tokens: usize);
    /// Forgets every position from `len` on.
    fn truncate(&mut self, len: usize);
    /// Makes room for `capacity` positions and keeps those held.
    ///
    /// # Errors
    /// If there is not enough memory for the old and the new cache; the old one is then unchanged.
    fn grow(&mut self, capacity: usize) -> Result<(), CacheError>;
}

/// A burn backend with the operations that the models run on.
///
/// All float tensors are f32 and row-major; a packed weight is an integer tensor that holds the
/// exact bytes the device's kernels read (see [`MatrixShape`]). Lengths that do not fit together
/// are programming errors and panic: whatever comes from a file is checked when it is loaded.
pub trait KernelBackend: Backend {
    /// The key-value cache of this device.
    type KvCache: KvStore + Send;

    /// The first allocation for this thread that has failed since it last asked. Devices that work
    /// asynchronously tell so nowhere else; what was computed since then is worthless.
    fn memory_failure(_device: &Self::Device) -> Option<MemoryFailure> {
        None
    }

    /// `activation(x Wᵀ + bias) + residual` with packed `W` (`[rows, cols]`).
    ///
    /// # Shapes
    /// - x: `[tokens, cols]`, bias: `[rows]`, residual and result: `[tokens, rows]`
    fn packed_linear(
        x: &FloatTensor<Self>,
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        bias: Option<&FloatTensor<Self>>,
        activation: Activation,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `activation(gate) * up`, where rows `gate | up` are `x Wᵀ` with packed `W` (`[rows, cols]`).
    ///
    /// # Shapes
    /// - x: `[tokens, cols]`, result: `[tokens, rows / 2]`
    fn gated_linear(
        x: &FloatTensor<Self>,
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let gate_up = Self::packed_linear(x, weight, shape, None, Activation::None, None);
        Self::gated(&gate_up, activation)
    }

    /// Rows `ids` of a packed matrix, dequantized: `[ids.len(), cols]`.
    fn gather_rows(
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        ids: &[u32],
        device: &Self::Device,
    ) -> FloatTensor<Self>;

    /// Rows `ids` of a dense matrix: `[ids.len(), cols]`.
    fn select_rows(
        table: &FloatTensor<Self>,
        ids: &[u32],
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        let ids = Tensor::<Self, 1, Int>::from_data(TensorData::from(ids), device);
        Self::float_select(table.clone(), 0, ids.into_primitive())
    }

    /// See [`highest_score`]; reads no more from the device than it has to.
    ///
    /// # Shapes
    /// - scores: `[1, vocabulary]`
    ///
    /// # Errors
    /// What the device says that went wrong, now or before.
    fn highest(scores: FloatTensor<Self>) -> Result<Option<u32>, ExecutionError> {
        let scores = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(scores));
        let data = scores.try_into_data()?;
        Ok(highest_score(data.as_slice().expect("scores are f32")))
    }

    /// Root mean square norm of every row (Zhang & Sennrich 2019, eq. 4).
    fn fused_rms_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// Layer norm of every row (Ba et al. 2016).
    fn fused_layer_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// `activation(gate) * up` for rows `gate | up`: `[tokens, 2 width]` to `[tokens, width]`.
    fn gated(gate_up: &FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// The feed-forward part of a layer: `down(activation(up(x))) + residual`, or, where the rows of
    /// `up` are `gate | up`, `down(activation(gate(x)) * up(x)) + residual`. A device may keep what
    /// lies between the products in its own form.
    ///
    /// # Shapes
    /// - x: `[tokens, up.cols]`, residual and result: `[tokens, down.rows]`
    fn feed_forward(
        x: &FloatTensor<Self>,
        up: Packed<'_, Self>,
        activation: Activation,
        gated: bool,
        down: Packed<'_, Self>,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let none = Activation::None;
        let hidden = match up.bias {
            None if gated => Self::gated_linear(x, up.weight, up.shape, activation),
            bias if gated => {
                let gate_up = Self::packed_linear(x, up.weight, up.shape, bias, none, None);
                Self::gated(&gate_up, activation)
            }
            bias => Self::packed_linear(x, up.weight, up.shape, bias, activation, None),
        };
        Self::packed_linear(&hidden, down.weight, down.shape, down.bias, none, residual)
    }

    /// Rotates `heads` heads from column `column` on, in place: rotate-half convention, the
    /// first `2 * cos_width` elements of each head.
    ///
    /// # Shapes
    /// - x: `[tokens, width]`, cos and sin: `[tokens, rotary_dim / 2]`
    fn rope(
        x: FloatTensor<Self>,
        column: usize,
        heads: usize,
        head_dim: usize,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Softmax attention; no matrix of queries by keys is ever held
    /// (Dao et al. 2022, algorithm 1).
    ///
    /// # Shapes
    /// - q: `[q_len, ≥ heads * head_dim]`, k and v: `[kv_len, ≥ kv_heads * head_dim]`,
    ///   bias: `[heads, q_len, kv_len]`, result: `[q_len, heads * head_dim]`
    fn fused_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: Mask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// As [`fused_attention`](Self::fused_attention) among the tokens of an encoder whose weights are
    /// 8 bits or fewer anyway: a device that gains from it may round queries, keys, values and
    /// shares to 8 bits, too.
    ///
    /// # Shapes
    /// - as there; mask: full or segments
    fn quantized_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: Mask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        Self::fused_attention(q, k, v, heads, mask, None, scale)
    }

    /// An empty cache with all its memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    fn kv_cache(shape: CacheShape, device: &Self::Device) -> Result<Self::KvCache, CacheError>;

    /// Appends keys and values of the new tokens to `layer` of the cache, then lets every new
    /// token attend to all positions up to its own.
    ///
    /// # Shapes
    /// - qkv: `[tokens, (heads + 2 kv_heads) * head_dim]`,
    ///   bias (added to the scaled scores): `[heads, tokens, positions held + tokens]`,
    ///   result: `[tokens, heads * head_dim]`
    fn cached_attention(
        qkv: &FloatTensor<Self>,
        heads: Heads,
        cache: &mut Self::KvCache,
        layer: usize,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// As [`cached_attention`](Self::cached_attention) without bias, after queries and keys were
    /// rotated as [`rope`](Self::rope) does.
    ///
    /// # Shapes
    /// - qkv and result: as there; cos and sin: `[tokens, rotary_dim / 2]`
    fn rotated_attention(
        qkv: FloatTensor<Self>,
        heads: Heads,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        cache: &mut Self::KvCache,
        layer: usize,
        scale: f32,
    ) -> FloatTensor<Self> {
        let rotated = heads.heads + heads.kv_heads;
        let qkv = Self::rope(qkv, 0, rotated, heads.head_dim, cos, sin);
        Self::cached_attention(&qkv, heads, cache, layer, None, scale)
    }
}
