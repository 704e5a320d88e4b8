//! Measurements of `edge-lmm bench`.

pub mod kernels;
