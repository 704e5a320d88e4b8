//! `cargo fuzz run --features libfuzzer tokenizer_json`
#![no_main]

edge_lmm_fuzz::fuzz_program!("tokenizer_json");
