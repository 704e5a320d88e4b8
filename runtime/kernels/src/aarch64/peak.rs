//! Loops that run at the peak throughput of the multiply-add instructions.

use crate::simd::peak_loop;
use std::arch::aarch64::*;
use std::arch::asm;

macro_rules! q4_neon_chain {
    ($acc:literal) => {
        concat!(
            "smlal ",
            $acc,
            ".8h, v14.8b, v15.8b\n",
            "smlal2 ",
            $acc,
            ".8h, v14.16b, v15.16b"
        )
    };
}
macro_rules! q8_neon_chain {
    ($acc:literal) => {
        concat!(
            "smull v13.8h, v14.8b, v15.8b\n",
            "smlal2 v13.8h, v14.16b, v15.16b\n",
            "sadalp ",
            $acc,
            ".4s, v13.8h"
        )
    };
}
macro_rules! dotprod_chain {
    ($acc:literal) => {
        concat!("sdot ", $acc, ".4s, v14.16b, v15.16b")
    };
}
macro_rules! float_chain {
    ($acc:literal) => {
        concat!("fmla ", $acc, ".4s, v14.4s, v15.4s")
    };
}

peak_loop! {
    /// `smlal` into 16 bits.
    q4_neon,
    features: "neon",
    chain: q4_neon_chain,
    chains: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11"],
    inputs: ["v14" = vdupq_n_s8(3), "v15" = vdupq_n_s8(5)],
    clobbers: [],
    count: ["subs {rounds:w}, {rounds:w}, #1" "b.ne 2b"],
    operations: 32,
}
peak_loop! {
    /// `smull`, `smlal` and `sadalp` into 32 bits.
    q8_neon,
    features: "neon",
    chain: q8_neon_chain,
    chains: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11"],
    inputs: ["v14" = vdupq_n_s8(3), "v15" = vdupq_n_s8(5)],
    clobbers: ["v13"],
    count: ["subs {rounds:w}, {rounds:w}, #1" "b.ne 2b"],
    operations: 32,
}
peak_loop! {
    /// Dot products of 16 bytes.
    dotprod,
    features: "neon,dotprod",
    chain: dotprod_chain,
    chains: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11"],
    inputs: ["v14" = vdupq_n_s8(3), "v15" = vdupq_n_s8(5)],
    clobbers: [],
    count: ["subs {rounds:w}, {rounds:w}, #1" "b.ne 2b"],
    operations: 32,
}
peak_loop! {
    /// Fused multiply-adds of 4 floats.
    float,
    features: "neon",
    chain: float_chain,
    chains: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11"],
    inputs: ["v14" = vdupq_n_f32(0.5), "v15" = vdupq_n_f32(0.25)],
    clobbers: [],
    count: ["subs {rounds:w}, {rounds:w}, #1" "b.ne 2b"],
    operations: 8,
}
