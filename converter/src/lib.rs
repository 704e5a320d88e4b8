//! Turns a checkpoint into one record that `edge-lmm` runs.
//!
//! [`source`] reads the checkpoint lazily, [`plan`] chooses the format of every weight,
//! [`calibration`] quantizes weights by their inputs, [`mod@write`] packs and writes the weights one
//! by one, so that memory use is bounded by the largest tensor and not by the model.
//! [`edge_lmm::output`] makes a file appear only when it is complete.

pub mod calibration;
mod command;
pub mod compare;
mod compare_command;
pub mod export;
mod factors;
mod fold;
mod generate;
#[cfg(unix)]
mod interrupt;
mod leftovers;
pub mod mixed;
mod names;
mod pack;
pub mod plan;
mod planned_weight;
mod predictions;
mod progress;
pub mod prune;
mod random_weights;
mod rows;
pub mod source;
mod temporary_record;
pub mod write;

pub use command::main;
pub use plan::{ConvertError, Options, Plan, Pruning};
pub use planned_weight::PlannedWeight;
pub use progress::Progress;
pub use random_weights::random_checkpoint;
pub use write::{Report, write_calibrated, write_record, write_record_to};
