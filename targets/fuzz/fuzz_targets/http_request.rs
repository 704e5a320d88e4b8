//! `cargo fuzz run --features libfuzzer http_request`
#![no_main]

edge_lmm_fuzz::fuzz_program!("http_request");
