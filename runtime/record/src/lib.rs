//! The record: one file (`.bpk`) with everything that a model needs on the device.
//!
//! A record is a burnpack file: packed weights as tensors and, in its metadata, the model's
//! configuration, tokenizer and prompt template ([`schema`]). [`Record`] maps and checks one,
//! [`write_record`] writes one. A [`bundle`] is a program with a record appended.
//!
//! Without the feature `model` (on by default), only [`bundle`], [`map`], [`output`] and
//! [`stand_in`] are left, and the crate does not depend on burn.

pub mod bundle;
#[allow(unsafe_code)]
pub mod map;
pub mod output;
#[cfg(feature = "model")]
mod reader;
#[cfg(feature = "model")]
pub mod schema;
#[cfg(feature = "model")]
mod skeleton;
pub mod stand_in;
#[cfg(feature = "model")]
mod writer;

pub use map::FileMap;
#[cfg(feature = "model")]
pub use reader::{Record, RecordError, TensorEntry};
#[cfg(feature = "model")]
pub use schema::{FORMAT_VERSION, PackedFormat, RecordInfo, SourceFile};
#[cfg(feature = "model")]
pub use skeleton::Skeleton;
#[cfg(feature = "model")]
pub use writer::{Description, WriteError, write_record};
