//! `cargo fuzz run --features libfuzzer safetensors`
#![no_main]

edge_lmm_fuzz::fuzz_program!("safetensors");
