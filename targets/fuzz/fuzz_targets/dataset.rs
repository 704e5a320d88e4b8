//! `cargo fuzz run --features libfuzzer dataset`
#![no_main]

edge_lmm_fuzz::fuzz_program!("dataset");
