//! Encoders of images and sounds, and what maps their features into a language model.

pub(crate) mod clip;
pub(crate) mod eva_vit;
pub(crate) mod merger;
pub(crate) mod patch_grid;
pub(crate) mod qformer;
pub(crate) mod whisper;
