//! CPU backend: operations on [`NdArray`] tensors by the SIMD kernels.
//!
//! burn-ndarray provides the storage, including weights borrowed from a mapped record. The operations
//! read their operands in place and write to one new buffer.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{TensorData, TensorMetadata};
use burn_ndarray::{NdArray, NdArrayDevice, NdArrayTensor};
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{self, Heads, KvCache, Mask, Rows, WeightedMask};
use edge_lmm_kernels::format::{Matrix, MatrixShape};
use edge_lmm_kernels::linear::{self, Epilogue, FeedForward};
use edge_lmm_kernels::{DeltaInput, RowSums};
use edge_lmm_kernels::{elementwise, norm, pool, rope};

use crate::backend::{CacheError, CacheShape, DeltaOperands, KernelBackend, KvStore, Packed, Part};
use crate::stored::StoredKeys;

type Cpu = NdArray<f32, i64, i8>;

/// Returns the elements of a float tensor; copies only if they are not contiguous.
fn floats(tensor: &NdArrayTensor) -> Cow<'_, [f32]> {
    let NdArrayTensor::F32(storage) = tensor else {
        panic!("activations are f32, found {:?}", tensor.dtype());
    };
    let view = storage.view();
    match view.to_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(view.iter().copied().collect()),
    }
}

/// Returns the bytes of a packed weight; copies only if they are not contiguous.
fn bytes(tensor: &NdArrayTensor) -> Cow<'_, [u8]> {
    let NdArrayTensor::U8(storage) = tensor else {
        panic!("packed weights are u8, found {:?}", tensor.dtype());
    };
    let view = storage.view();
    match view.to_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(view.iter().copied().collect()),
    }
}

fn matrix<'a>(shape: MatrixShape, bytes: &'a [u8]) -> Matrix<'a> {
    Matrix::new(shape, bytes).expect("the length of a packed weight is checked when it is loaded")
}

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> NdArrayTensor {
    NdArrayTensor::from_data(TensorData::new(values, shape))
}

/// Applies `change` to the elements of `tensor`, in place if it has no other owner.
fn update(tensor: NdArrayTensor, change: impl FnOnce(&mut [f32])) -> NdArrayTensor {
    let shape = size(&tensor);
    let NdArrayTensor::F32(storage) = tensor else {
        panic!("activations are f32, found {:?}", tensor.dtype());
    };
    let mut array = storage.into_shared();
    match array.as_slice_mut() {
        Some(slice) => {
            change(slice);
            NdArrayTensor::from(array)
        }
        None => {
            let mut values: Vec<f32> = array.iter().copied().collect();
            change(&mut values);
            self::tensor(values, shape)
        }
    }
}

/// Returns rows and columns of a matrix.
fn size(tensor: &NdArrayTensor) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

fn rows<'a>(values: &'a [f32], stride: usize, column: usize) -> Rows<'a> {
    Rows {
        data: &values[column.min(values.len())..],
        stride,
    }
}

impl KvStore for KvCache {
    fn layers(&self) -> usize {
        KvCache::layers(self)
    }

    fn len_of(&self, layer: usize) -> usize {
        KvCache::len_of(self, layer)
    }

    fn capacity(&self) -> usize {
        KvCache::capacity(self)
    }

    fn bytes(&self) -> usize {
        KvCache::bytes(self)
    }

    fn advance_layers(&mut self, layers: Range<usize>, tokens: usize) {
        KvCache::advance_layers(self, layers, tokens);
    }

    fn truncate_layers(&mut self, layers: Range<usize>, len: usize) {
        KvCache::truncate_layers(self, layers, len);
    }

    fn grow(&mut self, capacity: usize) -> Result<(), CacheError> {
        KvCache::grow(self, capacity).map_err(|error| CacheError(error.to_string()))
    }

    fn fork(&self) -> Result<Self, CacheError> {
        KvCache::fork(self).map_err(|error| CacheError(error.to_string()))
    }

    fn stored(&self, len: usize) -> Option<StoredKeys> {
        self.all_hold(len).then(|| StoredKeys {
            layers: self.layers(),
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            element_bytes: self.element_bytes(),
            len,
        })
    }

    fn layer_bytes(&self, layer: usize, len: usize) -> Result<Vec<u8>, CacheError> {
        Ok(KvCache::layer_bytes(self, layer, len))
    }

    fn set_layer_bytes(&mut self, layer: usize, len: usize, bytes: &[u8]) {
        KvCache::set_layer_bytes(self, layer, len, bytes);
    }
}

impl KernelBackend for Cpu {
    type KvCache = KvCache;

    fn fingerprint(_device: &NdArrayDevice) -> String {
        format!("cpu {}", pool::global().kernels().isa().name())
    }

    fn weight_memory(weight: &IntTensor<Self>) -> Option<(usize, usize)> {
        match bytes(weight) {
            Cow::Borrowed(bytes) => Some((bytes.as_ptr().addr(), bytes.len())),
            Cow::Owned(_) => None,
        }
    }

    fn packed_linear(
        x: &FloatTensor<Self>,
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        bias: Option<&FloatTensor<Self>>,
        activation: Activation,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let [tokens, _] = size(x);
        let (x, packed, bias) = (floats(x), bytes(weight), bias.map(floats));
        let weight = matrix(shape, &packed);
        let pool = pool::global();
        match residual {
            Some(residual) => {
                let epilogue = Epilogue {
                    bias: bias.as_deref(),
                    activation,
                    accumulate: true,
                };
                update(residual, |out| {
                    linear::linear(&pool, &weight, &x, &epilogue, out);
                })
            }
            None => {
                let bias = bias.as_deref();
                let out = linear::product(&pool, &weight, &x, tokens, bias, activation);
                tensor(out, [tokens, shape.rows])
            }
        }
    }

    fn feed_forward(
        x: &FloatTensor<Self>,
        up: Packed<'_, Self>,
        activation: Activation,
        gated: bool,
        down: Packed<'_, Self>,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let [tokens, _] = size(x);
        let (x, packed) = (floats(x), [bytes(up.weight), bytes(down.weight)]);
        let (up_bias, down_bias) = (up.bias.map(floats), down.bias.map(floats));
        let layers = FeedForward {
            up: matrix(up.shape, &packed[0]),
            up_bias: up_bias.as_deref(),
            activation,
            gated,
            down: matrix(down.shape, &packed[1]),
            down_bias: down_bias.as_deref(),
        };
        let accumulate = residual.is_some();
        let run = |out: &mut [f32]| {
            linear::feed_forward(&pool::global(), &layers, &x, accumulate, out);
        };
        match residual {
            Some(residual) => update(residual, run),
            None => {
                let mut out = vec![0.0; tokens * down.shape.rows];
                run(&mut out);
                tensor(out, [tokens, down.shape.rows])
            }
        }
    }

    fn gather_rows(
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        ids: &[u32],
        _device: &NdArrayDevice,
    ) -> FloatTensor<Self> {
        let packed = bytes(weight);
        let weight = matrix(shape, &packed);
        let mut out = vec![0.0; ids.len() * shape.cols];
        for (row, &id) in out.chunks_exact_mut(shape.cols).zip(ids) {
            weight.row_into(id as usize, row);
        }
        tensor(out, [ids.len(), shape.cols])
    }

    /// Reads the rows in place. A burn operation would copy the whole table if it is borrowed.
    fn select_rows(
        table: &FloatTensor<Self>,
        ids: &[u32],
        _device: &NdArrayDevice,
    ) -> FloatTensor<Self> {
        let [_, cols] = size(table);
        let values = floats(table);
        let mut out = Vec::with_capacity(ids.len() * cols);
        for &id in ids {
            out.extend_from_slice(&values[id as usize * cols..][..cols]);
        }
        tensor(out, [ids.len(), cols])
    }

    fn sum_heads(x: Part<'_, Self>, heads: usize, head_dim: usize) -> FloatTensor<Self> {
        let [rows, stride] = size(x.tensor);
        let mut out = vec![0.0; rows * head_dim];
        let (pool, values) = (pool::global(), floats(x.tensor));
        edge_lmm_kernels::sum_heads(&pool, &values, stride, x.column, heads, head_dim, &mut out);
        tensor(out, [rows, head_dim])
    }

    fn sum_rows(x: &FloatTensor<Self>, sums: &RowSums) -> FloatTensor<Self> {
        let [_, width] = size(x);
        let mut out = vec![0.0; sums.len() * width];
        edge_lmm_kernels::sum_rows(&pool::global(), &floats(x), width, sums, &mut out);
        tensor(out, [sums.len(), width])
    }

    fn fused_rms_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let shape = size(x);
        let out = norm::rms_norm(&pool::global(), &floats(x), &floats(gamma), eps);
        tensor(out, shape)
    }

    fn fused_layer_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let shape = size(x);
        let (x, gamma, beta) = (floats(x), floats(gamma), floats(beta));
        let out = norm::layer_norm(&pool::global(), &x, &gamma, &beta, eps);
        tensor(out, shape)
    }

    fn gated(gate_up: &FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let [tokens, width] = size(gate_up);
        let mut out = vec![0.0; tokens * width / 2];
        elementwise::gated(
            &pool::global(),
            &floats(gate_up),
            width / 2,
            activation,
            &mut out,
        );
        tensor(out, [tokens, width / 2])
    }

    fn rope(
        x: FloatTensor<Self>,
        column: usize,
        heads: usize,
        head_dim: usize,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [_, stride] = size(&x);
        let [_, half] = size(cos);
        update(x, |values| {
            rope::rope(
                &pool::global(),
                &mut values[column..],
                stride,
                heads,
                head_dim,
                2 * half,
                &floats(cos),
                &floats(sin),
            );
        })
    }

    fn fused_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let ([q_len, q_stride], [kv_len, k_stride]) = (size(q.tensor), size(k.tensor));
        let [_, v_stride] = size(v.tensor);
        let (q_values, k_values, v_values) = (floats(q.tensor), floats(k.tensor), floats(v.tensor));
        let bias = bias.map(floats);
        let width = heads.heads * heads.head_dim;
        let out = attention::attention(
            &pool::global(),
            heads,
            rows(&q_values, q_stride, q.column),
            q_len,
            rows(&k_values, k_stride, k.column),
            rows(&v_values, v_stride, v.column),
            kv_len,
            mask,
            bias.as_deref(),
            scale,
        );
        tensor(out, [q_len, width])
    }

    fn quantized_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let [len, q_stride] = size(q.tensor);
        let whole = [0, len];
        let segments = match mask.mask {
            Mask::Full => &whole,
            Mask::Segments(ends) => ends,
            Mask::Causal | Mask::Ranges(_) => {
                return Self::fused_attention(q, k, v, heads, mask, None, scale);
            }
        };
        let pool = pool::global();
        let [kv_len, _] = size(k.tensor);
        let fits = kv_len == len && heads.head_dim <= attention::MAX_INTEGER_HEAD_DIM;
        if !fits || !pool.kernels().isa().has_dot_product() {
            return Self::fused_attention(q, k, v, heads, mask, None, scale);
        }
        let ([_, k_stride], [_, v_stride]) = (size(k.tensor), size(v.tensor));
        let (q_values, k_values, v_values) = (floats(q.tensor), floats(k.tensor), floats(v.tensor));
        let width = heads.heads * heads.head_dim;
        let out = attention::integer_attention(
            &pool,
            heads,
            rows(&q_values, q_stride, q.column),
            rows(&k_values, k_stride, k.column),
            rows(&v_values, v_stride, v.column),
            len,
            segments,
            mask.key_weights,
            scale,
        );
        tensor(out, [len, width])
    }

    fn attention_received(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let ([q_len, q_stride], [kv_len, k_stride]) = (size(q.tensor), size(k.tensor));
        let (q_values, k_values) = (floats(q.tensor), floats(k.tensor));
        let received = attention::attention_received(
            &pool::global(),
            heads,
            rows(&q_values, q_stride, q.column),
            q_len,
            rows(&k_values, k_stride, k.column),
            kv_len,
            mask,
            scale,
        );
        NdArrayTensor::from_data(TensorData::new(received, [kv_len]))
    }

    fn kv_cache(shape: CacheShape, _device: &NdArrayDevice) -> Result<KvCache, CacheError> {
        KvCache::new(
            shape.layers,
            shape.kv_heads,
            shape.head_dim,
            shape.capacity,
            shape.quantized,
        )
        .map_err(|error| CacheError(error.to_string()))
    }

    fn cached_attention(
        qkv: &FloatTensor<Self>,
        heads: Heads,
        cache: &mut KvCache,
        layer: usize,
        mask: Mask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let [tokens, stride] = size(qkv);
        let (values, bias) = (floats(qkv), bias.map(floats));
        let width = heads.heads * heads.head_dim;
        let kv_width = heads.kv_heads * heads.head_dim;
        cache.append(
            layer,
            rows(&values, stride, width),
            rows(&values, stride, width + kv_width),
            tokens,
        );
        let out = attention::cached_attention(
            &pool::global(),
            heads,
            rows(&values, stride, 0),
            tokens,
            cache,
            layer,
            cache.len_of(layer) + tokens,
            mask,
            bias.as_deref(),
            scale,
        );
        tensor(out, [tokens, width])
    }

    fn attention_row(
        q: &FloatTensor<Self>,
        heads: Heads,
        cache: &KvCache,
        layer: usize,
        keys: Range<usize>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let values = floats(q);
        let q = &values[..heads.heads * heads.head_dim];
        let count = keys.len();
        let out = attention::attention_row(&pool::global(), heads, q, cache, layer, keys, scale);
        tensor(out, [1, count])
    }

    fn short_conv(
        x: Part<'_, Self>,
        before: &FloatTensor<Self>,
        kernel: &FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let ([tokens, stride], [channels, taps]) = (size(x.tensor), size(kernel));
        let (values, before) = (floats(x.tensor), floats(before));
        let x = rows(&values, stride, x.column);
        let out = edge_lmm_kernels::short_conv(
            &pool::global(),
            x,
            tokens,
            &before,
            &floats(kernel),
            channels,
            activation,
        );
        let row = |place: usize| match place.checked_sub(taps - 1) {
            Some(token) => &x.data[token * stride..][..channels],
            None => &before[place * channels..][..channels],
        };
        let after = (tokens..tokens + taps - 1).flat_map(row).copied().collect();
        (
            tensor(out, [tokens, channels]),
            tensor(after, [taps - 1, channels]),
        )
    }

    fn gated_delta_rule(
        operands: DeltaOperands<'_, Self>,
        state: &FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let heads = operands.heads;
        let ([tokens, _], gate) = (size(operands.qkv), operands.output_gate);
        let [_, stride] = size(gate.tensor);
        let gate_values = floats(gate.tensor);
        let input = DeltaInput {
            qkv: &floats(operands.qkv),
            gates: &floats(operands.gates),
            decay_log: &floats(operands.decay_log),
            decay_bias: &floats(operands.decay_bias),
            output_gate: rows(&gate_values, stride, gate.column),
            gamma: &floats(operands.gamma),
            eps: operands.eps,
        };
        let pool = pool::global();
        let (out, after) = edge_lmm_kernels::gated_delta_rule(&pool, heads, input, &floats(state));
        (
            tensor(out, [tokens, heads.value_width()]),
            tensor(after, heads.state()),
        )
    }
}
