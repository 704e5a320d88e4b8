//! Preprocessing against the reference's processors. `data/preprocess/make_fixtures.py` writes
//! the expected values; the goldens of the tiny checkpoints come with them.

mod fixtures;
mod qwen2_vl;
mod resize;
