//! Profiles: time, memory, arithmetic and energy of the stages and modules of a model.
//!
//! A run is recorded with a [detailed](crate::Recording::detailed) recording; [`Runs`] summarizes its
//! repeats as a part of a [`ProfileReport`], and [`table`] shows that as text.

pub mod energy;
#[cfg(feature = "profiler")]
mod profiler;
pub mod report;
mod resident;
mod roofline;
mod run;
pub mod table;

#[cfg(feature = "profiler")]
pub use profiler::{Profiler, RunningProfiler};
pub use report::ProfileReport;
pub use run::{Measured, Runs, modules};
