//! Encoders of images and audio, and projectors into a language model.

pub mod block;
pub mod clip;
pub mod eva_vit;
pub(crate) mod merged_patches;
pub mod merger;
pub mod patch_grid;
pub mod qformer;
pub(crate) mod qwen2_5_audio;
pub(crate) mod qwen2_5_vit;
pub(crate) mod qwen3_vit;
pub mod siglip;
pub(crate) mod siglip2;
pub(crate) mod square_patches;
pub(crate) mod tower;
pub mod whisper;
