//! `cargo fuzz run --features libfuzzer gguf_vocabulary`
#![no_main]

edge_lmm_fuzz::fuzz_program!("gguf_vocabulary");
