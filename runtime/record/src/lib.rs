//! The record: one file (`.bpk`) with everything that a model needs on the device.
//!
//! A record is a burnpack file: packed weights as tensors and, in its metadata, the model's
//! configuration, tokenizer and prompt template ([`schema`]). [`Record`] maps and checks one. A
//! [`bundle`] is a program with a record appended.

pub mod bundle;
#[allow(unsafe_code)]
pub mod map;
pub mod output;
mod reader;
pub mod schema;
pub mod stand_in;

pub use map::Mapping;
pub use reader::{Record, RecordError, Skeleton, TensorEntry};
pub use schema::{FORMAT_VERSION, PackedFormat, RecordInfo, SourceFile};
