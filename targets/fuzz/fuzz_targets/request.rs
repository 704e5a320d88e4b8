//! `cargo fuzz run --features libfuzzer request`
#![no_main]

edge_lmm_fuzz::fuzz_program!("request");
