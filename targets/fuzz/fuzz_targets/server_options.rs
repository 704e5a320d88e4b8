//! `cargo fuzz run --features libfuzzer server_options`
#![no_main]

edge_lmm_fuzz::fuzz_program!("server_options");
