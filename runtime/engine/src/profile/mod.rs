//! Profiles: time, memory, arithmetic and energy of the stages and modules of a model.
//!
//! A run is recorded with a [detailed](crate::Recording::detailed) recording; [`Runs`] summarizes its
//! repeats as a part of a [`ProfileReport`], and [`table`] shows that as text.

pub mod energy;
pub mod report;
mod resident;
mod roofline;
mod run;
pub mod table;

pub use report::ProfileReport;
pub use run::{Measured, Runs, modules};
