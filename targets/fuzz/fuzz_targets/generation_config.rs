//! `cargo fuzz run --features libfuzzer generation_config`
#![no_main]

edge_lmm_fuzz::fuzz_program!("generation_config");
