//! `cargo fuzz run --features libfuzzer animation`
#![no_main]

edge_lmm_fuzz::fuzz_program!("animation");
