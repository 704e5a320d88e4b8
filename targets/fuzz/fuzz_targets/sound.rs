//! `cargo fuzz run --features libfuzzer sound`
#![no_main]

edge_lmm_fuzz::fuzz_program!("sound");
