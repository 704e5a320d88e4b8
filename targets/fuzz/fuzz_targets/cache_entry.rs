//! `cargo fuzz run --features libfuzzer cache_entry`
#![no_main]

edge_lmm_fuzz::fuzz_program!("cache_entry");
