//! Kernels for x86-64: AVX2, AVX-VNNI and AVX-512 with VNNI.
#![allow(unsafe_code)]

mod avx512;
mod delta_rule;
mod detect;
mod float;
mod kernels;
mod load;
mod peak;
mod quantized;

pub(crate) use detect::{Avx2, Avx512Vnni, AvxVnni};
