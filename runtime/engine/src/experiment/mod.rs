//! Measurements of `edge-lmm bench`.

pub mod kernels;
#[cfg(feature = "files")]
pub mod reduction;
pub mod report;
