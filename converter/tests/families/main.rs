//! Behavior of single families beyond the stages that `parity.rs` compares.

#[path = "../common/mod.rs"]
mod common;

mod blip2;
mod phi3;
mod progress;
mod qwen2_5_omni;
mod qwen2_audio;
mod qwen3_5;
