//! The measured times of a model on this machine.

use std::path::Path;
use std::time::{Duration, Instant};

use edge_lmm::AnyEngine;
use edge_lmm::cost::{CostFolder, CostModel};
use edge_lmm::timing::readable;

/// Returns the folder of measured times: within the cache folder, or else within the user's.
pub fn folder(cache: Option<&Path>) -> Option<CostFolder> {
    cache.map(CostFolder::within).or_else(CostFolder::of_user)
}

/// Measures the times of an engine and keeps them. Says so on standard error.
pub fn measure(engine: &AnyEngine, folder: Option<&CostFolder>) -> anyhow::Result<CostModel> {
    let start = Instant::now();
    let costs = engine.measure_costs()?;
    let key = engine.cost_key();
    let place = folder.map(|folder| {
        folder.save(&key, &costs);
        format!(" and kept in {}", folder.path(&key).display())
    });
    eprintln!(
        "the times of this model on this machine were measured in {}{}",
        readable(start.elapsed()),
        place.unwrap_or_default()
    );
    Ok(costs)
}

/// Gives an engine the times that a limit of the time to the first token needs; they are measured
/// if they are not known.
pub fn apply(
    budget: Option<Duration>,
    cache: Option<&Path>,
    engine: &AnyEngine,
) -> anyhow::Result<()> {
    if budget.is_none() {
        return Ok(());
    }
    let folder = folder(cache);
    let known = folder
        .as_ref()
        .and_then(|folder| folder.load(&engine.cost_key()));
    let costs = match known {
        Some(costs) => costs,
        None => measure(engine, folder.as_ref())?,
    };
    engine.use_costs(costs);
    Ok(())
}
