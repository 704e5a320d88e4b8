//! `cargo fuzz run --features libfuzzer model_config`
#![no_main]

edge_lmm_fuzz::fuzz_program!("model_config");
