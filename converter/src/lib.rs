//! Turns a checkpoint into one record that `edge-lmm` runs.
//!
//! [`source`] reads the checkpoint lazily, [`plan`] chooses the format of every weight,
//! [`calibration`] quantizes weights by their inputs, [`mod@write`] packs and writes the weights one
//! by one, so that memory use is bounded by the largest tensor and not by the model.
//! [`edge_lmm::output`] makes a file appear only when it is complete.

pub mod calibration;
pub mod compare;
pub mod export;
mod factors;
mod fold;
mod leftovers;
mod names;
mod pack;
pub mod plan;
mod planned_weight;
mod rows;
pub mod source;
pub mod write;

pub use plan::{ConvertError, Options, Plan, Pruning};
pub use planned_weight::PlannedWeight;
pub use write::{Report, write_calibrated, write_record, write_record_to};
