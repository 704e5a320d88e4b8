//! `cargo fuzz run --features libfuzzer record`
#![no_main]

edge_lmm_fuzz::fuzz_program!("record");
