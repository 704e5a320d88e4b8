//! Measurements that a command repeats: `edge-lmm bench`.

pub mod kernels;
