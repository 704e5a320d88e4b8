//! GPU backend: CubeCL kernels for every CubeCL runtime (CUDA, Vulkan).
//!
//! A file uses only files above it in this table:
//!
//! | file | subject |
//! |---|---|
//! | `tensor` | tensors as kernel arguments |
//! | `memory` | failed allocations |
//! | `norm`, `rope`, `activation` | normalization, rotary embedding, activations |
//! | `argmax` | the next token of greedy decoding |
//! | `packed` | packed weights on a GPU |
//! | `products`, `fragments` | multiplication methods: multiply-adds or tensor cores |
//! | `gather` | embeddings |
//! | `epilogue`, `gemv`, `gemm`, `linear` | products with packed weights, for a few tokens or many |
//! | `attention/{operands, plain, tensor_cores}` | flash attention kernels |
//! | `cache` | key-value cache |
//! | `attention/step` | selection and launch of the attention kernels |
//! | `backend` | the operations of [`KernelBackend`](crate::KernelBackend) |
//! | `trial` | compilation and timing of every kernel |
//!
//! burn provides tensors, memory and the queue of operations; its fusion and autotuning are off. No
//! operation waits for the device, except those that read a tensor.

mod activation;
mod argmax;
mod attention;
mod backend;
mod cache;
mod epilogue;
mod fragments;
mod gather;
mod gemm;
mod gemv;
mod linear;
pub mod memory;
mod norm;
mod packed;
mod products;
mod rope;
mod tensor;
mod trial;

#[cfg(feature = "vulkan")]
pub use backend::Vulkan;
pub use backend::{Cube, attention_by, multiply, products};
#[cfg(feature = "cuda")]
pub use backend::{Cuda, keep_compiled};
#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
#[cfg(feature = "vulkan")]
pub use burn_wgpu::WgpuRuntime;
pub use cache::CubeCache;
#[cfg(feature = "cuda")]
pub use cubecl::cuda::CudaRuntime;
pub use products::Products;
pub use trial::{Trial, trials};
