//! Packed weight formats and the kernels that compute with them, on plain slices.
//!
//! | module | subject |
//! |---|---|
//! | [`format`](mod@format) | the byte layout of packed weights: f32, f16, q8, q4 |
//! | [`pack`] | quantizing and packing rows of weights |
//! | [`linear`](mod@linear) | products with packed weights, one token or many |
//! | [`attention`](mod@attention) | softmax attention without a score matrix, the key/value cache |
//! | [`norm`], [`activation`], [`rope`](mod@rope) | the element-wise rest of a transformer block |
//! | [`pool`] | the threads that share the work |
//! | [`cpu`] | which instruction set is used |
//! | [`memory`] | counting heap bytes |
//! | [`ceiling`] | what this machine could reach at most |
//!
//! # Reproducibility
//! On one machine an output depends only on the operands: not on the number of threads, nor on how
//! many tokens are computed in the same call. Each output is one fixed chain of float operations.
//! Instruction sets differ from each other by rounding (fused or separate multiply-add, the width of
//! activation quantization, see [`cpu::Kernels::code`]).

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod activation;
pub mod attention;
pub mod ceiling;
pub mod cpu;
mod element;
pub mod format;
mod generic;
pub mod linear;
pub mod memory;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod rope;
mod scratch;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use activation::{Activation, activate, gated};
pub use attention::{
    CacheError, Heads, KvCache, Mask, Rows, attention, cached_attention, integer_attention,
};
pub use cpu::Isa;
pub use format::{Format, FormatError, Matrix, MatrixShape};
pub use linear::{Epilogue, FeedForward, feed_forward, linear, product};
pub use norm::{layer_norm, rms_norm};
pub use pack::{PackStats, pack_rows};
pub use pool::{ThreadPool, global, set_global_threads};
pub use rope::rope;
