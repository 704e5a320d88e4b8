//! What a model *is*: its configuration, its burn modules, how its inputs are prepared and how
//! its prompt is put together. One file per family; [`family`] is the registry.
//!
//! Running a model (loading a record, the decode loop, timing) is the business of the crate
//! `edge-lmm`; writing records that of `edge-lmm-convert`. Both build a model with the same code,
//! see [`weights`].

pub mod blip2;
mod chat_template;
pub mod clip;
mod config_file;
mod control_tokens;
pub mod decoder;
pub mod demo;
mod error;
pub mod eva_vit;
pub mod family;
mod guard;
pub mod layers;
pub mod llama;
pub mod llava;
pub mod merger;
pub mod model;
pub mod monitor;
mod multimodal_rope;
pub mod opt;
mod patch_grid;
pub mod phi3;
pub mod phi3_v;
mod placeholder;
pub mod preprocess;
pub mod prompt;
pub mod qformer;
pub mod qwen2;
pub mod qwen2_5_vl;
pub mod qwen2_audio;
pub mod qwen2_vl;
mod qwen_vl_input;
pub mod record;
mod rope_fields;
pub mod rotary;
pub mod t5;
mod template_limits;
pub mod text_config;
pub mod text_model;
mod tokenizer_limits;
pub mod weights;
pub mod whisper_encoder;

pub use error::ModelError;
