//! Encoders of images and audio, and projectors into a language model.

pub mod block;
pub mod clip;
pub mod eva_vit;
pub(crate) mod merged_patches;
pub mod merger;
pub mod patch_grid;
pub mod qformer;
pub mod siglip;
pub(crate) mod square_patches;
pub(crate) mod tower;
pub mod whisper;
