//! What a model *is*: its configuration, its burn modules, how its inputs are prepared and how
//! its prompt is put together. One file per family; [`families`] is the registry.
//!
//! Running a model (loading a record, the decode loop, timing) is the business of the crate
//! `edge-lmm`; writing records that of `edge-lmm-convert`. Both build a model with the same code,
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
pub mod preprocess;
pub mod prompt;
pub mod text;
pub mod weights;

pub use error::ModelError;
