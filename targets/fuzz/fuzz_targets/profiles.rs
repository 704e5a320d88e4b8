//! `cargo fuzz run --features libfuzzer profiles`
#![no_main]

edge_lmm_fuzz::fuzz_program!("profiles");
