//! `cargo fuzz run --features libfuzzer chat_line`
#![no_main]

edge_lmm_fuzz::fuzz_program!("chat_line");
