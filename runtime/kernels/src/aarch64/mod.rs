//! Kernels for AArch64: Advanced SIMD, with and without the dot product instruction.
//!
//! As on x86-64, a block of a panel is unpacked into registers in which byte `4 r + j` of the pair `i` of
//! registers is the weight of row `r` and input `4 i + j`.
#![allow(unsafe_code)]

mod delta_rule;
mod detect;
mod dotprod;
mod float;
mod kernels;
mod load;
mod loops;
mod peak;
mod smlal;

pub(crate) use detect::{Neon, NeonDotprod};
