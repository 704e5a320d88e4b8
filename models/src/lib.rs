//! Definitions of models: configuration, burn modules and construction of prompts. Each family has one
//! file; [`families`] is the registry.
//!
//! The crate `edge-lmm` runs models: loading of records, decoding and timing. `edge-lmm-convert`
//! writes records. Both build a model with the same code,
//! see [`weights`].

mod config_file;
pub mod demo;
pub mod encoders;
mod error;
pub mod families;
pub mod family;
mod guard;
pub mod language;
pub mod layers;
pub mod layout;
pub mod media;
pub mod model;
pub mod monitor;
pub mod mtp;
pub mod prompt;
pub mod reduce;
mod sizes;
pub mod text;
pub mod weights;

pub use edge_lmm_preprocess as preprocess;

pub use error::ModelError;
