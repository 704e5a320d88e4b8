//! `cargo fuzz run --features libfuzzer web_address`
#![no_main]

edge_lmm_fuzz::fuzz_program!("web_address");
