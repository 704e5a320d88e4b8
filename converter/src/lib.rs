//! Turns a checkpoint into one record that `edge-lmm` runs.
//!
//! [`source`] reads the checkpoint lazily, [`plan`] decides what every weight becomes, [`mod@write`]
//! packs and writes them one by one: memory stays near the largest tensor, not the model. [`edge_lmm::output`]
//! lets a file appear only when it is whole.

mod fold;
mod leftovers;
mod names;
pub mod plan;
mod rows;
pub mod source;
pub mod write;

pub use plan::{ConvertError, Options, Plan, Pruning};
pub use write::{Report, write_record, write_record_to};
