//! Packed weight formats and the kernels that compute with them, on plain slices.
//!
//! A module uses only modules above it in this table:
//!
//! | module | subject |
//! |---|---|
//! | [`format`](mod@format) | byte layout of packed weights: f32, f16, q8, q4 |
//! | [`activation`] | activation functions |
//! | [`memory`] | heap accounting |
//! | [`cpu`] | instruction sets and the interface that each implements |
//! | `generic`, `x86_64`, `aarch64` | portable reference kernels and SIMD kernels |
//! | [`dispatch`] | run-time detection and selection of the instruction set |
//! | [`meter`] | waiting threads and parts of attention, for profiles |
//! | [`pool`] | thread pool |
//! | [`peak`] | peak arithmetic throughput and memory bandwidth, for rooflines |
//! | `fit`, [`pack`] | quantization and packing of weights |
//! | [`linear`](mod@linear) | products with packed weights, for one token or many |
//! | [`attention`](mod@attention) | softmax attention without a score matrix, key/value cache |
//! | [`norm`], [`elementwise`], [`rope`](mod@rope) | normalization, activations, rotary embedding |
//! | [`delta_rule`], `short_conv` | recurrent layers: the gated delta rule, convolutions over a few tokens |
//! | `distance`, `merging` | distances and sums of rows, for the choice and merging of tokens |
//! | [`workload`] | shapes and operands of the kernel benchmarks |
//!
//! # Reproducibility
//! On one machine an output depends only on the operands, not on the number of threads or on the
//! other tokens of the call: each output is one fixed sequence of float operations. Instruction sets
//! differ from each other by rounding, because they have fused or separate multiply-add and
//! quantize activations to different ranges (see [`cpu::Kernels::activation_scheme`]).

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod activation;
pub mod attention;
pub mod cpu;
pub mod delta_rule;
pub mod dispatch;
mod distance;
mod element;
pub mod elementwise;
mod fit;
pub mod format;
mod generic;
pub mod linear;
pub mod memory;
mod merging;
pub mod meter;
mod names;
pub mod norm;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod operands;
pub mod pack;
pub mod peak;
pub mod pool;
pub mod rope;
mod scratch;
mod short_conv;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
pub mod workload;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use activation::Activation;
pub use attention::{
    CacheError, Heads, KvCache, Mask, Rows, WeightedMask, attention, attention_received,
    attention_row, cached_attention, integer_attention,
};
pub use cpu::Isa;
pub use delta_rule::{DeltaHeads, DeltaInput, gated_delta_rule};
pub use distance::squared_distances;
pub use elementwise::{activate, gated};
pub use format::{Format, FormatError, Matrix, MatrixShape};
pub use linear::{Epilogue, FeedForward, feed_forward, linear, product};
pub use merging::{RowSums, sum_heads, sum_rows, weighted_sum};
pub use norm::{layer_norm, rms_norm};
pub use pack::{PackStats, pack_rows, pack_weighted};
pub use pool::{ThreadPool, global, set_global_threads};
pub use rope::rope;
pub use short_conv::short_conv;
