//! From decoded media to what an encoder takes: resizing, normalisation, patches, spectrograms.
//!
//! Everything here is plain Rust on slices and gives the numbers of the processors in
//! `transformers` (4.57), which resize pictures with Pillow and videos with torchvision. Decoding
//! files is the business of the crate `edge-lmm`.
//!
//! One file per family of models, named after it; they share [`resize`] and [`normalize`].
//! [`mel`] is for all encoders of sound, [`sample_rate`] brings sounds to the rate they take.

pub mod clip;
mod error;
mod fields;
mod filter;
mod image;
pub mod interpolate;
pub mod mel;
pub mod normalize;
pub mod phi3_vision;
pub mod qwen2_vl;
pub mod resize;
pub mod sample_rate;

pub use error::PreprocessError;
pub use filter::Filter;
pub use image::RgbImage;
