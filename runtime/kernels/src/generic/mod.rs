//! Portable reference kernels. Every SIMD kernel is tested against them.
//!
//! The functions on rows are written so that the compiler vectorizes them, and are compiled again for
//! each instruction set (module `rows`). Their parameter `FMA` tells whether that set has a fused
//! multiply-add.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod delta_rule;
mod float;
mod kernels;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod quantize;
mod quantized;
mod reduce;
pub(crate) mod rope;
pub(crate) mod rows;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use float::widen;
pub(crate) use kernels::Generic;
