//! `cargo fuzz run --features libfuzzer constraint`
#![no_main]

edge_lmm_fuzz::fuzz_program!("constraint");
