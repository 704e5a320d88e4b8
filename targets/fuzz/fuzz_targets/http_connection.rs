//! `cargo fuzz run --features libfuzzer http_connection`
#![no_main]

edge_lmm_fuzz::fuzz_program!("http_connection");
