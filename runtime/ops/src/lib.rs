//! The operations that models are written in, on burn tensors.
//!
//! [`KernelBackend`] extends burn's [`Backend`](burn::tensor::backend::Backend) by the coarse
//! operations that take nearly all of the time: products with packed weights, attention, norms,
//! rotary embeddings. On the CPU ([`burn_ndarray::NdArray`]) they run on the SIMD kernels of
//! `edge-lmm-kernels`; [`mod@reference`] has the same operations in plain burn operations, slow and
//! obvious, for tests to compare against.
//!
//! [`stage`] times what runs, [`probe`] captures intermediate tensors. Both cost nothing
//! measurable while nobody listens.

mod backend;
#[cfg(feature = "cube")]
pub mod cube;
mod functional;
mod ndarray;
pub mod probe;
pub mod reference;
pub mod stage;

pub use backend::{
    CacheError, CacheShape, KernelBackend, KvStore, MemoryFailure, Packed, Part, highest_score,
};
pub use edge_lmm_kernels::activation::Activation;
pub use edge_lmm_kernels::attention::{Heads, Mask};
pub use edge_lmm_kernels::format::{Format, MatrixShape};
pub use functional::{
    Columns, PackedLinear, attention, cached_attention, encoder_attention, feed_forward, gated,
    gated_linear, gather_rows, highest, layer_norm, linear, rms_norm, rope, rotated_attention,
    select_rows,
};
