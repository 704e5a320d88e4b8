//! `cargo fuzz run --features libfuzzer gguf_header`
#![no_main]

edge_lmm_fuzz::fuzz_program!("gguf_header");
