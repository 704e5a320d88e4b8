//! Experiments of `edge-lmm bench`.
//!
//! An [`Experiment`] lists its *cases* (what is varied) and measures each of them with every
//! *sample* (a question of a manifest, or a synthetic medium). [`run`] alternates the cases within a
//! sample, so that a drift of the machine affects all of them alike, and appends one line per
//! measurement to a [`Folder`]. [`report()`] computes the table, the charts and the conclusions from
//! these lines alone, so that shards of several machines can be joined ([`merge`]) without their
//! models.
//!
//! A new experiment is a file in `specs` and a line in [`ALL`].

mod answer;
mod bench;
mod error;
mod folder;
pub mod kernels;
mod line;
mod pair;
pub mod paper;
mod plan;
mod report;
mod results;
mod run;
mod sample;
mod shard;
mod spec;
mod specs;
pub mod speculation;
mod stages;
mod synthetic;
mod time_limit;

pub use bench::{Bench, BenchModel, Settings};
pub use error::ExperimentError;
pub use folder::Folder;
pub use line::{Line, Outcome};
pub use plan::Plan;
pub use report::{
    Axis, Bars, Cell, Chart, ChartData, Column, ExperimentReport, FORMAT, Failure,
    Line as ChartLine, Table, VERSION,
};
pub use results::Results;
pub use run::{Progress, plan, report, run};
pub use sample::{Modality, Sample, SampleKey};
pub use shard::{Shard, merge};
pub use spec::{About, Case, CaseKey, Experiment, Findings, Values};
pub(crate) use specs::parallel;
pub use specs::token_reduction;
pub use time_limit::TimeLimit;

/// The experiments in the order in which they are listed.
pub static ALL: &[&dyn Experiment] = &[
    &specs::modality_bottleneck::ModalityBottleneck,
    &specs::projection_compare::ProjectionCompare,
    &specs::frame_ablation::FrameAblation,
    &specs::serial_vs_parallel::SerialVsParallel,
    &specs::module_profile::ModuleProfile,
    &specs::video_audio_encode::VideoAudioEncode,
    &specs::two_devices::TwoDevices,
    &specs::audio_length::AudioLength,
    &specs::audio_padding::AudioPaddingCost,
    &specs::multiturn::Multiturn,
    &specs::token_prefill::TokenPrefill,
    &specs::defects::Defects,
    &specs::resolution::Resolution,
    &specs::quantization::Quantization,
    &specs::token_reduction::TokenReduction,
    &specs::threads::Threads,
    &specs::parallel::Parallel,
];

/// Returns the experiment of that name.
pub fn find(name: &str) -> Option<&'static dyn Experiment> {
    ALL.iter()
        .copied()
        .find(|experiment| experiment.about().name == name)
}
