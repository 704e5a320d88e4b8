//! GPUs: the operations as CubeCL kernels, written once for every CubeCL runtime (CUDA, Vulkan).
//!
//! | file | subject |
//! |---|---|
//! | `packed` | packed weights as a GPU reads them |
//! | `linear`, `gemv`, `gemm` | products with packed weights, a few tokens or many |
//! | `gather` | embeddings |
//! | `attention`, `cache` | flash attention, keys and values of past positions |
//! | `norm`, `rope`, `activation` | the rest of a transformer block |
//! | `tensor` | how burn's tensors go into kernels |
//! | `trial` | every kernel compiled and timed once |
//!
//! burn gives tensors, memory and the queue of work; its fusion and autotuning are off. No
//! operation waits for the device: only reading a tensor does.

mod activation;
mod attention;
mod cache;
mod gather;
mod gemm;
mod gemv;
mod linear;
mod norm;
mod packed;
mod rope;
mod tensor;
mod trial;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask};
use edge_lmm_kernels::format::MatrixShape;

use crate::backend::{CacheError, CacheShape, KernelBackend, Part};
use crate::reference;
#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
#[cfg(feature = "vulkan")]
pub use burn_wgpu::WgpuRuntime;
pub use cache::CubeCache;
#[cfg(feature = "cuda")]
pub use cubecl::cuda::CudaRuntime;
pub use gemm::Products;
pub use trial::{Trial, trials};

/// The backend of a CubeCL runtime: f32 activations, 32-bit integers and truth values, so that
/// any device can hold them.
pub type Cube<R> = CubeBackend<R, f32, i32, u32>;
/// NVIDIA GPUs.
#[cfg(feature = "cuda")]
pub type Cuda = Cube<CudaRuntime>;
/// GPUs through Vulkan.
#[cfg(feature = "vulkan")]
pub type Vulkan = Cube<WgpuRuntime>;

/// Keeps compiled kernels in a folder, so that the next start need not compile them; to be called
/// before any device is used. The folder must belong to this very program: what is kept is known
/// by the kernels' names and options, not by their code.
#[cfg(feature = "cuda")]
pub fn keep_compiled(folder: &std::path::Path) {
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    // It can be set only before anybody reads it.
    if CubeClRuntimeConfig::storage().lock().is_none() {
        let mut config = CubeClRuntimeConfig::default();
        config.compilation.cache = Some(CacheConfig::File(folder.to_owned()));
        CubeClRuntimeConfig::set(config);
    }
}

/// How the device that holds `x` multiplies tiles.
pub fn products<R: CubeRuntime>(x: &Tensor<Cube<R>, 2>) -> Products {
    Products::of(&R::client(&x.device()))
}

/// `x Wᵀ` of more than a few tokens, multiplied in a way of one's own choice.
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

impl<R: CubeRuntime, T: BoolElement> KernelBackend for CubeBackend<R, f32, i32, T> {
    type KvCache = CubeCache<R>;

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

    fn gather_rows(
        weight: &IntTensor<Self>,
        shape: MatrixShape,
        ids: &[u32],
        _device: &Self::Device,
    ) -> FloatTensor<Self> {
        gather::gather_rows(weight, shape, ids)
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
        mask: Mask<'_>,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self> {
        if !attention::fits(&q.tensor.client, heads.head_dim) {
            let part = |part: Part<'_, Self>, heads_of: usize| {
                let tensor = TensorPrimitive::Float(part.tensor.clone());
                let tensor = Tensor::<Self, 2>::from_primitive(tensor);
                tensor.narrow(1, part.column, heads_of * heads.head_dim)
            };
            let [q, k, v] = [
                part(q, heads.heads),
                part(k, heads.kv_heads),
                part(v, heads.kv_heads),
            ];
            let bias = bias.map(|bias| {
                Tensor::<Self, 3>::from_primitive(TensorPrimitive::Float(bias.clone()))
            });
            let out = reference::attention(q, k, v, heads, mask, bias, scale);
            return out.into_primitive().tensor();
        }
        attention::fused(
            (q.tensor, q.column),
            (k.tensor, k.column),
            (v.tensor, v.column),
            heads,
            mask,
            bias,
            scale,
        )
    }

    fn kv_cache(shape: CacheShape, device: &Self::Device) -> Result<Self::KvCache, CacheError> {
        CubeCache::new(shape, device)
    }

    fn cached_attention(
        qkv: &FloatTensor<Self>,
        heads: Heads,
        cache: &mut Self::KvCache,
        layer: usize,
        bias: Option<&FloatTensor<Self>>,
        scale: f32,
    ) -> FloatTensor<Self> {
        cache.append(qkv, heads, layer);
        attention::cached(qkv, heads, cache, layer, bias, scale)
    }
}
