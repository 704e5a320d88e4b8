//! `cargo fuzz run --features libfuzzer image`
#![no_main]

edge_lmm_fuzz::fuzz_program!("image");
