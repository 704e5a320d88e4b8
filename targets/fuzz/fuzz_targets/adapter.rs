//! `cargo fuzz run --features libfuzzer adapter`
#![no_main]

edge_lmm_fuzz::fuzz_program!("adapter");
