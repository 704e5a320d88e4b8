//! `cargo fuzz run --features libfuzzer hub_files`
#![no_main]

edge_lmm_fuzz::fuzz_program!("hub_files");
