//! Profiles: time, memory, arithmetic and energy of the stages and modules of a model.

pub mod report;

pub use report::ProfileReport;
