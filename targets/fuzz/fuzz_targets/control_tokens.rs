//! `cargo fuzz run --features libfuzzer control_tokens`
#![no_main]

edge_lmm_fuzz::fuzz_program!("control_tokens");
