//! `cargo fuzz run --features libfuzzer statistics`
#![no_main]

edge_lmm_fuzz::fuzz_program!("statistics");
