//! Preprocessing against the reference's processors. `data/preprocess/make_fixtures.py` writes
//! the expected values; the goldens of the tiny checkpoints come with them.

mod clip;
mod fixtures;
mod interpolate;
mod mel;
mod phi3_vision;
mod qwen2_vl;
mod resize;
mod sample_rate;
