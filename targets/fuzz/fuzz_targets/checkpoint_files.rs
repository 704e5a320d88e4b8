//! `cargo fuzz run --features libfuzzer checkpoint_files`
#![no_main]

edge_lmm_fuzz::fuzz_program!("checkpoint_files");
