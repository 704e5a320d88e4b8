//! Backend of a CubeCL runtime: the operations by the kernels of this module.

use std::ops::Range;

use burn::tensor::activation::softmax;
use burn::tensor::backend::ExecutionError;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
#[cfg(feature = "vulkan")]
use burn_wgpu::WgpuRuntime;
#[cfg(feature = "cuda")]
use cubecl::cuda::CudaRuntime;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};
use edge_lmm_kernels::format::MatrixShape;

use super::attention::plain::fits;
use super::attention::{row, step};
use super::cache::CubeCache;
use super::products::Products;
use super::tensor::Rows;
use super::{activation, argmax, gather, linear, memory, norm, rope};
use crate::backend::{CacheError, CacheShape, KernelBackend, MemoryFailure, Part};
use crate::reference;

/// Backend of a CubeCL runtime with f32 activations and 32-bit integers and booleans, which all
/// devices support.
pub type Cube<R> = CubeBackend<R, f32, i32, u32>;
/// NVIDIA GPUs.
#[cfg(feature = "cuda")]
pub type Cuda = Cube<CudaRuntime>;
/// GPUs through Vulkan.
#[cfg(feature = "vulkan")]
pub type Vulkan = Cube<WgpuRuntime>;

/// Enables a cache of compiled kernels in `folder`. It must be called before any device is used.
/// The folder must be specific to this build of the program, because entries are identified by the
/// names and options of kernels, not by their code.
#[cfg(feature = "cuda")]
pub fn keep_compiled(folder: &std::path::Path) {
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    // The configuration cannot be set after it has been read.
    if CubeClRuntimeConfig::storage().lock().is_none() {
        let mut config = CubeClRuntimeConfig::default();
        config.compilation.cache = Some(CacheConfig::File(folder.to_owned()));
        CubeClRuntimeConfig::set(config);
    }
}

/// Returns the multiplication method on the device of `x`.
pub fn products<R: CubeRuntime>(x: &Tensor<Cube<R>, 2>) -> Products {
    Products::of(&R::client(&x.device()))
}

/// Computes `x Wᵀ` for many tokens with the given multiplication method.
///
/// # Shapes
/// - x: `[tokens, cols]`, result: `[tokens, rows]`
pub fn multiply<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    weight: Tensor<Cube<R>, 1, Int>,
    shape: MatrixShape,
    products: Products,
) -> Tensor<Cube<R>, 2> {
    let (x, weight) = (x.into_primitive().tensor(), weight.into_primitive());
    let out = linear::linear(
        &x,
        &weight,
        shape,
        None,
        Activation::None,
        None,
        Some(products),
    );
    Tensor::from_primitive(TensorPrimitive::Float(out))
}

/// Computes attention among the tokens of `qkv` with the given multiplication method.
///
/// # Shapes
/// - qkv: `[tokens, (heads + 2 kv_heads) * head_dim]`, result: `[tokens, heads * head_dim]`
pub fn attention_by<'a, R: CubeRuntime>(
    qkv: Tensor<Cube<R>, 2>,
    heads: Heads,
    mask: impl Into<WeightedMask<'a>>,
    scale: f32,
    products: Products,
) -> Tensor<Cube<R>, 2> {
    let tensor = &qkv.into_primitive().tensor();
    let part = |heads_before: usize| Part {
        tensor,
        column: heads_before * heads.head_dim,
    };
    let (k, v) = (part(heads.heads), part(heads.heads + heads.kv_heads));
    let out = attend::<R, u32>(part(0), k, v, heads, mask.into(), None, scale, products);
    Tensor::from_primitive(TensorPrimitive::Float(out))
}

impl<R: CubeRuntime, T: BoolElement> KernelBackend for CubeBackend<R, f32, i32, T> {
    type KvCache = CubeCache<R>;

    fn fingerprint(device: &Self::Device) -> String {
        let client = R::client(device);
        let hardware = &client.properties().hardware;
        let products = Products::of(&client);
        format!("{} {device:?} {products:?} {hardware:?}", R::name(&client))
    }

    fn memory_failure(device: &Self::Device) -> Option<MemoryFailure> {
        memory::failure(&R::client(device))
    }

    fn packed_linear(
        x: &FloatTensor<Self>,
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        bias: Option<&FloatTensor<Self>>,
        activation: Activation,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear(x, weight, shape, bias, activation, residual, None)
    }

    fn gated_linear(
        x: &FloatTensor<Self>,
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        activation: Activation,
    ) -> FloatTensor<Self> {
        linear::gated(x, weight, shape, activation)
    }

    fn gather_rows(
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        ids: &[u32],
        _device: &Self::Device,
    ) -> FloatTensor<Self> {
        gather::gather_rows(weight, shape, ids)
    }

    fn argmax(scores: FloatTensor<Self>) -> Result<Option<u32>, ExecutionError> {
        argmax::argmax(&scores)
    }

    fn fused_rms_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        norm::rms_norm(x, gamma, eps)
    }

    fn fused_layer_norm(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        norm::layer_norm(x, gamma, beta, eps)
    }

    fn gated(gate_up: &FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        activation::gated(gate_up, activation)
    }

    fn rope(
        x: FloatTensor<Self>,
        column: usize,
        heads: usize,
        head_dim: usize,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rope::rope(x, column, heads, head_dim, cos, sin)
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
        attend(q, k, v, heads, mask, bias, scale, Products::Plain)
    }

    fn quantized_attention(
        q: Part<'_, Self>,
        k: Part<'_, Self>,
        v: Part<'_, Self>,
        heads: Heads,
        mask: WeightedMask<'_>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let products = Products::of(&q.tensor.client);
        attend(q, k, v, heads, mask, None, scale, products)
    }

    fn kv_cache(shape: CacheShape, device: &Self::Device) -> Result<Self::KvCache, CacheError> {
        CubeCache::new(shape, device)
    }

    fn cached_attention(
        qkv: &FloatTensor<Self>,
        heads: Heads,
        cache: &mut Self::KvCache,
        layer: usize,
        mask: Mask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self> {
        cache.append(&Rows::of(qkv), heads, layer, None);
        step::cached(qkv, heads, cache, layer, mask, bias, scale)
    }

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
        let qkv = Rows::owned(qkv);
        cache.append(&qkv, heads, layer, Some((cos, sin)));
        step::cached(&qkv.into_tensor(), heads, cache, layer, mask, None, scale)
    }

    fn attention_row(
        q: &FloatTensor<Self>,
        heads: Heads,
        cache: &Self::KvCache,
        layer: usize,
        keys: Range<usize>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let scores = row::scores(q, heads, cache, layer, keys, scale);
        let scores = Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(scores));
        softmax(scores, 1).mean_dim(0).into_primitive().tensor()
    }
}

/// Computes attention without a score matrix, or with one if the heads are too large for the
/// kernels.
#[expect(
    clippy::too_many_arguments,
    reason = "those of the operation and one more"
)]
fn attend<R: CubeRuntime, T: BoolElement>(
    q: Part<'_, CubeBackend<R, f32, i32, T>>,
    k: Part<'_, CubeBackend<R, f32, i32, T>>,
    v: Part<'_, CubeBackend<R, f32, i32, T>>,
    heads: Heads,
    mask: WeightedMask<'_>,
    bias: Option<&CubeTensor<R>>,
    scale: f32,
    products: Products,
) -> CubeTensor<R> {
    if !fits(&q.tensor.client, heads.head_dim) {
        let part = |part: Part<'_, CubeBackend<R, f32, i32, T>>, heads_of: usize| {
            let tensor = TensorPrimitive::Float(part.tensor.clone());
            let tensor = Tensor::<CubeBackend<R, f32, i32, T>, 2>::from_primitive(tensor);
            tensor.narrow(1, part.column, heads_of * heads.head_dim)
        };
        let [q, k, v] = [
            part(q, heads.heads),
            part(k, heads.kv_heads),
            part(v, heads.kv_heads),
        ];
        let bias = bias.map(|bias| {
            Tensor::<CubeBackend<R, f32, i32, T>, 3>::from_primitive(TensorPrimitive::Float(
                bias.clone(),
            ))
        });
        let out = reference::attention(q, k, v, heads, mask, bias, scale);
        return out.into_primitive().tensor();
    }
    step::fused(
        (q.tensor, q.column),
        (k.tensor, k.column),
        (v.tensor, v.column),
        heads,
        mask,
        bias,
        scale,
        products,
    )
}
