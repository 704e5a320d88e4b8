//! Preprocessing of decoded media for encoders: resizing, normalization, patches, spectrograms.
//!
//! This crate is plain Rust on slices and reproduces the numbers of the processors in
//! `transformers` (4.57), which resize images with Pillow and videos with torchvision. The crate
//! `edge-lmm` decodes files.
//!
//! Each family of models has its own file; they share [`resize`] and [`normalize`]. [`mel`]
//! serves all audio encoders, [`sample_rate`] converts audio to the rate they expect.

pub mod clip;
mod error;
mod fields;
mod filter;
pub mod gemma3;
mod image;
pub mod interpolate;
pub mod lfm2_vl;
pub mod mel;
pub mod normalize;
pub mod phi3_vision;
pub mod qwen2_vl;
pub mod resize;
pub mod sample_rate;
pub mod settings;
pub mod smolvlm;
mod tiles;

pub use error::PreprocessError;
pub use filter::Filter;
pub use image::{RgbImage, frame_size};
