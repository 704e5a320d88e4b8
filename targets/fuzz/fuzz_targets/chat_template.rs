//! `cargo fuzz run --features libfuzzer chat_template`
#![no_main]

edge_lmm_fuzz::fuzz_program!("chat_template");
