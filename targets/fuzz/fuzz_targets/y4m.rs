//! `cargo fuzz run --features libfuzzer y4m`
#![no_main]

edge_lmm_fuzz::fuzz_program!("y4m");
