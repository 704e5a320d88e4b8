//! Encoders of images and audio, and projectors into a language model.

pub(crate) mod block;
pub(crate) mod clip;
pub(crate) mod eva_vit;
pub(crate) mod merger;
pub(crate) mod patch_grid;
pub(crate) mod qformer;
mod square_patches;
pub(crate) mod whisper;
