//! The operations that a device implements to run the models.

use std::io::{self, Write};
use std::ops::Range;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};
use edge_lmm_kernels::format::MatrixShape;
use edge_lmm_kernels::{DeltaHeads, RowSums};

use crate::recurrent::DeltaRule;
use crate::stored::StoredKeys;
use crate::{Columns, received, recurrent, reference};

/// Columns of a `[tokens, width]` tensor from `column` on, such as a part of a fused projection.
pub struct Part<'a, B: Backend> {
    /// The tensor.
    pub tensor: &'a FloatTensor<B>,
    /// First column of the part.
    pub column: usize,
}

/// A packed matrix with its bias.
pub struct Packed<'a, B: Backend> {
    /// The packed bytes.
    pub weight: &'a IntTensor<B>,
    /// Format and size of the matrix.
    pub shape: MatrixShape,
    /// `[shape.rows]`
    pub bias: Option<&'a FloatTensor<B>>,
}

/// Operands of [`KernelBackend::gated_delta_rule`]; see [`DeltaRule`].
pub struct DeltaOperands<'a, B: Backend> {
    /// Numbers and sizes of heads.
    pub heads: DeltaHeads,
    /// Queries, keys and values: `[tokens, width]`.
    pub qkv: &'a FloatTensor<B>,
    /// Gates of the update, then of the decay: `[tokens, 2 * value_heads]`.
    pub gates: &'a FloatTensor<B>,
    /// Logarithm of the decay's factor: `[value_heads]`.
    pub decay_log: &'a FloatTensor<B>,
    /// Added to the gate of the decay: `[value_heads]`.
    pub decay_bias: &'a FloatTensor<B>,
    /// Gates of the outputs: `[tokens, value_width]`.
    pub output_gate: Part<'a, B>,
    /// Scale of the norm of the outputs: `[value_dim]`.
    pub gamma: &'a FloatTensor<B>,
    /// Epsilon of that norm.
    pub eps: f32,
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
    /// Largest number of positions.
    pub capacity: usize,
    /// `true` if keys and values are products with weights of at most 8 bits. A device may then store
    /// keys and values in half precision and round queries to it.
    pub quantized: bool,
}

impl CacheShape {
    /// Returns the bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let elements = self.layers * self.kv_heads * self.head_dim * self.capacity;
        2 * if self.quantized { 2 } else { 4 } * elements
    }
}

/// An allocation that failed on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFailure {
    /// Requested bytes, if the device reports them.
    pub asked: Option<u64>,
    /// Bytes that this program holds on the device, if the device reports them.
    pub held: Option<u64>,
    /// Free bytes of the device, if known.
    pub free: Option<u64>,
}

impl std::fmt::Display for MemoryFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = |n: Option<u64>| n.map_or("an unknown number of".to_owned(), |n| n.to_string());
        write!(
            f,
            "{} bytes were requested, {} are held",
            bytes(self.asked),
            bytes(self.held)
        )?;
        match self.free {
            Some(free) => write!(f, ", {free} are free"),
            None => Ok(()),
        }
    }
}

/// The reason why a key-value cache could not be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheError(pub String);

impl std::fmt::Display for CacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CacheError {}

/// Returns the index of the largest score, the first one of equals. Returns `None` without scores,
/// or if a score is NaN or the largest one is infinite, which means that the model has overflowed.
pub fn slice_argmax(scores: &[f32]) -> Option<u32> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    (0..)
        .zip(scores)
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
        .filter(|(_, score)| score.is_finite())
        .map(|(id, _)| id)
}

/// Keys and values of past positions, in memory that is allocated in advance.
///
/// Layers may hold different numbers of positions: tokens can be appended to some layers only
/// ([`advance_layers`](Self::advance_layers)). Every layer has the same capacity.
pub trait KvStore {
    /// Returns the number of layers.
    fn layers(&self) -> usize;
    /// Returns the number of positions in use in a layer.
    fn len_of(&self, layer: usize) -> usize;
    /// Returns the number of positions in use in the first layer.
    fn len(&self) -> usize {
        match self.layers() {
            0 => 0,
            _ => self.len_of(0),
        }
    }
    /// Returns `true` if no position of the first layer is in use.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Returns the maximum number of positions.
    fn capacity(&self) -> usize;
    /// Returns the allocated bytes.
    fn bytes(&self) -> usize;
    /// Increases the length of `layers` by `tokens`, after these have been appended to them.
    fn advance_layers(&mut self, layers: Range<usize>, tokens: usize);
    /// Increases the length of every layer by `tokens`, after these have been appended to all.
    fn advance(&mut self, tokens: usize) {
        self.advance_layers(0..self.layers(), tokens);
    }
    /// Shortens `layers` to `len` positions each. Does nothing to those that have fewer.
    fn truncate_layers(&mut self, layers: Range<usize>, len: usize);
    /// Takes as many of the last positions from every layer as leave `len` in the first. Does
    /// nothing if it has fewer.
    fn truncate(&mut self, len: usize) {
        let removed = self.len().saturating_sub(len);
        for layer in 0..self.layers() {
            let left = self.len_of(layer).saturating_sub(removed);
            self.truncate_layers(layer..layer + 1, left);
        }
    }
    /// Increases the capacity to `capacity` positions and keeps the contents.
    ///
    /// # Errors
    /// If there is not enough memory for the old and the new cache; the old one is then unchanged.
    fn grow(&mut self, capacity: usize) -> Result<(), CacheError>;
    /// Returns an independent copy with the same capacity.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn fork(&self) -> Result<Self, CacheError>
    where
        Self: Sized;
    /// Returns `true` if all layers hold the same number of positions, at least `len`.
    fn all_hold(&self, len: usize) -> bool {
        let held = self.len();
        len <= held && (0..self.layers()).all(|layer| self.len_of(layer) == held)
    }
    /// Returns the shape of the first `len` positions as [`export`](Self::export) writes them;
    /// `None` if there are fewer or layers hold different positions.
    fn stored(&self, len: usize) -> Option<StoredKeys>;
    /// Returns the first `len` positions of a layer in the form of [`StoredKeys`].
    ///
    /// # Errors
    /// If the device fails.
    fn layer_bytes(&self, layer: usize, len: usize) -> Result<Vec<u8>, CacheError>;
    /// Stores `len` positions of a layer, as [`layer_bytes`](Self::layer_bytes) returns them; the
    /// number of bytes is right.
    fn set_layer_bytes(&mut self, layer: usize, len: usize, bytes: &[u8]);

    /// Writes the first `len` positions of every layer in the form of [`StoredKeys`].
    ///
    /// # Errors
    /// If `out` fails, the device fails, or [`stored`](Self::stored) returns `None`.
    fn export(&self, len: usize, out: &mut dyn Write) -> io::Result<()> {
        let stored = self.stored(len).ok_or(io::ErrorKind::Unsupported)?;
        out.write_all(&stored.header())?;
        for layer in 0..stored.layers {
            out.write_all(&self.layer_bytes(layer, len).map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    /// Replaces the content by exported positions and returns their number. The capacity is
    /// unchanged.
    ///
    /// # Errors
    /// If the bytes belong to a cache of another shape or precision, or exceed the capacity; the
    /// cache is then unchanged.
    fn import(&mut self, bytes: &[u8]) -> Result<usize, CacheError> {
        let (stored, layers) = StoredKeys::parse(bytes)?;
        let own = self.stored(0).map(|own| StoredKeys {
            len: stored.len,
            ..own
        });
        if own != Some(stored) || stored.len > self.capacity() {
            return Err(CacheError(format!(
                "stored keys and values are {stored:?}, the cache takes {own:?} with up to {} \
                 positions",
                self.capacity()
            )));
        }
        self.truncate_layers(0..self.layers(), 0);
        // `parse` has checked that the sizes are those of the bytes.
        let size = stored.layer_bytes().unwrap_or_default();
        for layer in 0..stored.layers {
            let bytes = &layers[layer * size..][..size];
            self.set_layer_bytes(layer, stored.len, bytes);
        }
        self.advance(stored.len);
        Ok(stored.len)
    }
}

/// A burn backend with the operations that the models run on.
///
/// Float tensors are f32 and row-major. A packed weight is an integer tensor of the bytes that the
/// device's kernels read (see [`MatrixShape`]). Lengths that do not match are programming errors and
/// panic; data from files is checked when it is loaded.
pub trait KernelBackend: Backend {
    /// Key-value cache on this device.
    type KvCache: KvStore + Send;

    /// Describes everything about the device that results depend on, such as its instruction set.
    /// Stored results are used again only where this is the same.
    fn fingerprint(device: &Self::Device) -> String;

    /// Returns the first allocation of this thread that has failed since the previous call.
    /// Asynchronous devices report failures only here; results computed since then are invalid.
    fn memory_failure(_device: &Self::Device) -> Option<MemoryFailure> {
        None
    }

    /// Returns the address and length of a packed weight in this process's memory, if the device uses
    /// it there. Profiles tell from it how much of a mapped record is in memory.
    fn weight_memory(_weight: &IntTensor<Self>) -> Option<(usize, usize)> {
        None
    }

    /// Computes `activation(x Wᵀ + bias) + residual` with packed `W` (`[rows, cols]`).
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

    /// Computes `activation(gate) * up`, where rows `gate | up` are `x Wᵀ` with packed `W`
    /// (`[rows, cols]`).
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

    /// Dequantizes rows `ids` of a packed matrix: `[ids.len(), cols]`.
    fn gather_rows(
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        ids: &[u32],
        device: &Self::Device,
    ) -> FloatTensor<Self>;

    /// Selects rows `ids` of a dense matrix: `[ids.len(), cols]`.
    fn select_rows(
        table: &FloatTensor<Self>,
        ids: &[u32],
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        let ids = Tensor::<Self, 1, Int>::from_data(TensorData::from(ids), device);
        Self::float_select(table.clone(), 0, ids.into_primitive())
    }

    /// Sums the heads of every row of `x`: `[rows, head_dim]`.
    fn sum_heads(x: Part<'_, Self>, heads: usize, head_dim: usize) -> FloatTensor<Self> {
        let columns = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(x.tensor.clone()));
        let sums = reference::sum_heads(columns, x.column, heads, head_dim);
        sums.into_primitive().tensor()
    }

    /// Computes weighted sums of the rows of `x`: `[sums.len(), width]`.
    ///
    /// # Shapes
    /// - x: `[rows, width]`
    fn sum_rows(x: &FloatTensor<Self>, sums: &RowSums) -> FloatTensor<Self> {
        let x = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(x.clone()));
        reference::sum_rows(x, sums).into_primitive().tensor()
    }

    /// Returns the index of the largest score, as [`slice_argmax`]. A device with dedicated memory
    /// transfers only the index.
    ///
    /// # Shapes
    /// - scores: `[1, vocabulary]`
    ///
    /// # Errors
    /// If the device reports an error of this or an earlier operation.
    fn argmax(scores: FloatTensor<Self>) -> Result<Option<u32>, ExecutionError> {
        let scores = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(scores));
        let data = scores.try_into_data()?;
        Ok(slice_argmax(data.as_slice().expect("scores are f32")))
    }

    /// Applies root mean square normalization to every row (Zhang & Sennrich 2019, eq. 4).
    fn fused_rms_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// Applies layer normalization to every row (Ba et al. 2016).
    fn fused_layer_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// Computes `activation(gate) * up` for rows `gate | up`: `[tokens, 2 width]` to `[tokens,
    /// width]`.
    fn gated(gate_up: &FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// Computes the feed-forward network of a layer: `down(activation(up(x))) + residual`, or, if
    /// `gated`, `down(activation(gate(x)) * up(x)) + residual`, in which case the rows of `up` are
    /// `gate | up`. A device may choose the representation of hidden activations.
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

    /// Rotates the first `rotary_dim` elements of `heads` heads in place, starting with the head at
    /// column `column`, in the rotate-half convention.
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

    /// Computes softmax attention without storing the score matrix (Dao et al. 2022, algorithm 1).
    /// The logarithms of the weights of the keys are added to the scaled scores, as the bias is.
    ///
    /// # Shapes
    /// - q: `[q_len, ≥ heads * head_dim]`, k and v: `[kv_len, ≥ kv_heads * head_dim]`,
    ///   bias: `[heads, q_len, kv_len]`, result: `[q_len, heads * head_dim]`
    fn fused_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Computes [`fused_attention`](Self::fused_attention) among the tokens of an encoder with
    /// weights of at most 8 bits. A device may then also round queries, keys, values and attention
    /// weights to 8 bits.
    ///
    /// # Shapes
    /// - as for `fused_attention`; mask: full or segments
    fn quantized_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        Self::fused_attention(q, k, v, heads, mask, None, scale)
    }

    /// Computes the attention probability that each key receives, as a mean over all heads and over
    /// the queries that the key is visible to. It is 0 for a key without queries. The memory that
    /// this takes is proportional to the number of keys. A device may round queries and keys to half
    /// precision.
    ///
    /// # Shapes
    /// - q: `[q_len, ≥ heads * head_dim]`, k: `[kv_len, ≥ kv_heads * head_dim]`, result: `[kv_len]`
    fn attention_received(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let columns = |part: Part<'_, Self>, heads_of: usize| {
            let tensor = TensorPrimitive::Float(part.tensor.clone());
            let tensor = Tensor::<Self, 2>::from_primitive(tensor);
            tensor.narrow(1, part.column, heads_of * heads.head_dim)
        };
        let (q, k) = (columns(q, heads.heads), columns(k, heads.kv_heads));
        let received = received::attention_received(q, k, heads, mask, scale);
        received.into_primitive().tensor()
    }

    /// Creates an empty cache and allocates all its memory.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn kv_cache(shape: CacheShape, device: &Self::Device) -> Result<Self::KvCache, CacheError>;

    /// Appends the keys and values of new tokens to `layer` of the cache, then computes the attention of
    /// each new token to the positions that the mask selects: [`Mask::Causal`], all positions up to its
    /// own, or [`Mask::Ranges`].
    ///
    /// # Shapes
    /// - qkv: `[tokens, (heads + 2 kv_heads) * head_dim]`,
    ///   bias (added to the scaled scores): `[heads, tokens, length of the layer + tokens]`,
    ///   result: `[tokens, heads * head_dim]`
    fn cached_attention(
        qkv: &FloatTensor<Self>,
        heads: Heads,
        cache: &mut Self::KvCache,
        layer: usize,
        mask: Mask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Computes [`cached_attention`](Self::cached_attention) without bias, with queries and keys
    /// first rotated as by [`rope`](Self::rope).
    ///
    /// # Shapes
    /// - qkv and result: as for `cached_attention`; cos and sin: `[tokens, rotary_dim / 2]`
    #[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
    fn rotated_attention(
        qkv: FloatTensor<Self>,
        heads: Heads,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        cache: &mut Self::KvCache,
        layer: usize,
        mask: Mask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let rotated = heads.heads + heads.kv_heads;
        let qkv = Self::rope(qkv, 0, rotated, heads.head_dim, cos, sin);
        Self::cached_attention(&qkv, heads, cache, layer, mask, None, scale)
    }

    /// Computes the attention weights, `softmax(q kᵀ * scale)`, that one query gives to the
    /// positions `keys` of `layer` of the cache, in the mean over the heads.
    ///
    /// # Shapes
    /// - q: `[1, ≥ heads * head_dim]`, result: `[1, keys.len()]`
    fn attention_row(
        q: &FloatTensor<Self>,
        heads: Heads,
        cache: &Self::KvCache,
        layer: usize,
        keys: Range<usize>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Computes a causal convolution over a few tokens, each channel on its own, and an activation.
    /// Returns the outputs, and the inputs of the last `taps - 1` tokens, which are `before` of the next
    /// call.
    ///
    /// # Shapes
    /// - x and outputs: `[tokens, channels]`, kernel: `[channels, taps]`,
    ///   before and after: `[taps - 1, channels]`
    fn short_conv(
        x: Part<'_, Self>,
        before: &FloatTensor<Self>,
        kernel: &FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (before, kernel) = (typed::<Self, 2>(before), typed::<Self, 2>(kernel));
        let channels = kernel.dims()[0];
        let x = typed::<Self, 2>(x.tensor).narrow(1, x.column, channels);
        let (out, after) = recurrent::short_conv(x, before, kernel, activation);
        (primitive(out), primitive(after))
    }

    /// Applies the gated delta rule to each token in turn, and returns the outputs and the state after
    /// the last token; see [`gated_delta_rule`](edge_lmm_kernels::gated_delta_rule) of the kernels. A
    /// device may process several tokens at once.
    ///
    /// # Shapes
    /// - outputs: `[tokens, value_width]`, states: [`DeltaHeads::state`]
    fn gated_delta_rule(
        operands: DeltaOperands<'_, Self>,
        state: &FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let rule = DeltaRule {
            heads: operands.heads,
            qkv: typed::<Self, 2>(operands.qkv),
            gates: typed::<Self, 2>(operands.gates),
            decay_log: typed::<Self, 1>(operands.decay_log),
            decay_bias: typed::<Self, 1>(operands.decay_bias),
            output_gate: Columns {
                tensor: typed::<Self, 2>(operands.output_gate.tensor),
                column: operands.output_gate.column,
            },
            gamma: typed::<Self, 1>(operands.gamma),
            eps: operands.eps,
        };
        let (out, after) = recurrent::gated_delta_rule(rule, typed::<Self, 2>(state));
        (primitive(out), primitive(after))
    }
}

fn typed<B: Backend, const D: usize>(tensor: &FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor.clone()))
}

fn primitive<B: Backend>(tensor: Tensor<B, 2>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
