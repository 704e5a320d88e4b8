//! `cargo fuzz run --features libfuzzer quantized`
#![no_main]

edge_lmm_fuzz::fuzz_program!("quantized");
