//! `cargo fuzz run --features libfuzzer manifest`
#![no_main]

edge_lmm_fuzz::fuzz_program!("manifest");
