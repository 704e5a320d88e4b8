//! `cargo fuzz run --features libfuzzer results`
#![no_main]

edge_lmm_fuzz::fuzz_program!("results");
