//! From decoded media to what an encoder takes: resizing, normalisation, patches, spectrograms.
//!
//! Everything here is plain Rust on slices and gives the numbers of the processors in
//! `transformers` (4.57), which resize pictures with Pillow and videos with torchvision. Decoding
//! files is the business of the crate `edge-lmm`.
//!
//! One file per family of models, named after it; they share [`resize`] and [`normalize`].

mod error;
mod filter;
mod image;
pub mod normalize;
pub mod qwen2_vl;
pub mod resize;

pub use error::PreprocessError;
pub use filter::Filter;
pub use image::RgbImage;
