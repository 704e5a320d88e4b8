//! `cargo fuzz run --features libfuzzer gguf_model`
#![no_main]

edge_lmm_fuzz::fuzz_program!("gguf_model");
