//! `cargo fuzz run --features libfuzzer bundle`
#![no_main]

edge_lmm_fuzz::fuzz_program!("bundle");
