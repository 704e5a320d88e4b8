//! `cargo fuzz run --features libfuzzer mp4`
#![no_main]

edge_lmm_fuzz::fuzz_program!("mp4");
