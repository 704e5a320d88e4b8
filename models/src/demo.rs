//! The model and the image of `edge-lmm demo`, kept here so that the published crates hold them.

/// A trained Qwen2-VL with 0.8 million parameters as a record: text in q4, vision in q8.
pub static RECORD: &[u8] = include_bytes!("../demo/qwen2vl-tiny.bpk");

/// A PNG image of colored shapes.
pub static IMAGE: &[u8] = include_bytes!("../demo/shapes.png");
