//! `cargo fuzz run --features libfuzzer tool_calls`
#![no_main]

edge_lmm_fuzz::fuzz_program!("tool_calls");
