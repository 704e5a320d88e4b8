//! A report as a table of comma-separated values.

use edge_lmm::profile::ProfileReport;
use edge_lmm::profile::report::{Bound, ModuleCost, ProfileRun};
use serde::Serialize;

/// A module of a run.
#[derive(Serialize)]
struct Row<'a> {
    image_size: Option<u32>,
    frames: Option<usize>,
    audio_seconds: Option<f64>,
    turn: usize,
    stage: &'a str,
    module: &'a str,
    parent: Option<&'a str>,
    repeats: usize,
    median_ms: f64,
    mean_ms: f64,
    min_ms: f64,
    p95_ms: f64,
    max_ms: f64,
    std_dev_ms: f64,
    own_ms: f64,
    child_ms: f64,
    hidden_ms: f64,
    wait_ms: f64,
    calls: usize,
    tokens: u64,
    peak_bytes: u64,
    held_bytes: u64,
    weight_bytes: u64,
    weight_resident_bytes: Option<u64>,
    macs: u64,
    bytes: u64,
    launches: usize,
    gflops: Option<f64>,
    gbs: Option<f64>,
    bound: Bound,
    roof_share: Option<f64>,
    energy_joules: Option<f64>,
}

/// Writes one row per module and run.
///
/// # Errors
/// Never in practice: it is written to memory.
pub fn table(report: &ProfileReport) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for run in &report.runs {
        for cost in &run.modules {
            writer.serialize(row(run, cost))?;
        }
    }
    Ok(writer.into_inner()?)
}

fn row<'a>(run: &'a ProfileRun, cost: &'a ModuleCost) -> Row<'a> {
    let parent = cost.parent.and_then(|parent| run.modules.get(parent));
    Row {
        image_size: run.parameters.image_size,
        frames: run.parameters.frames,
        audio_seconds: run.parameters.audio_seconds,
        turn: run.parameters.turn,
        stage: &cost.stage,
        module: &cost.name,
        parent: parent.map(|parent| parent.name.as_str()),
        repeats: cost.ms.count,
        median_ms: cost.ms.median,
        mean_ms: cost.ms.mean,
        min_ms: cost.ms.min,
        p95_ms: cost.ms.p95,
        max_ms: cost.ms.max,
        std_dev_ms: cost.ms.std_dev,
        own_ms: cost.own_ms,
        child_ms: cost.child_ms,
        hidden_ms: cost.hidden_ms,
        wait_ms: cost.wait_ms,
        calls: cost.calls,
        tokens: cost.tokens,
        peak_bytes: cost.peak_bytes,
        held_bytes: cost.held_bytes,
        weight_bytes: cost.weight_bytes,
        weight_resident_bytes: cost.weight_resident_bytes,
        macs: cost.macs,
        bytes: cost.bytes,
        launches: cost.launches,
        gflops: cost.gflops,
        gbs: cost.gbs,
        bound: cost.bound,
        roof_share: cost.roof_share,
        energy_joules: cost.energy_joules,
    }
}
