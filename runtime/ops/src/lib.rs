//! Model operations on burn tensors.
//!
//! [`KernelBackend`] extends burn's [`Backend`](burn::tensor::backend::Backend) with the coarse
//! operations that take nearly all of the time: products with packed weights, attention, norms and
//! rotary embeddings. On the CPU ([`burn_ndarray::NdArray`]) they use the SIMD kernels of
//! `edge-lmm-kernels`. [`mod@reference`] implements the same operations with plain burn operations,
//! as a reference for tests.
//!
//! [`stage`] records the time of stages, [`probe`] captures intermediate tensors, [`observe`] shows the
//! inputs of every linear layer. Their cost is not measurable while they are off.

mod backend;
#[cfg(feature = "cube")]
pub mod cube;
mod functional;
mod ndarray;
pub mod observe;
pub mod probe;
#[cfg(feature = "profiled")]
pub mod profiled;
mod received;
mod recurrent;
pub mod reference;
pub mod stage;
mod stored;
mod work;

pub use backend::{
    CacheError, CacheShape, DeltaOperands, KernelBackend, KvStore, MemoryFailure, Packed, Part,
    slice_argmax,
};
pub use edge_lmm_kernels::activation::Activation;
pub use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};
pub use edge_lmm_kernels::format::{Format, MatrixShape};
pub use edge_lmm_kernels::{DeltaHeads, RowSums, pool, squared_distances, weighted_sum};
pub use functional::{
    Columns, PackedLinear, argmax, attention, attention_received, attention_row, cached_attention,
    encoder_attention, feed_forward, gated, gated_delta_rule, gated_linear, gather_rows,
    layer_norm, linear, rms_norm, rope, rotated_attention, select_rows, short_conv, sum_heads,
    sum_rows,
};
pub use recurrent::DeltaRule;
pub use stored::StoredKeys;
