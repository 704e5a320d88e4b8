//! Choice among the kinds of pruning by the predictions of the pruned model.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use edge_lmm_models::weights::Part;

use super::measure::Importance;
use super::structure::{key_value_heads, prune_channels, prune_heads, prune_layers};
use crate::calibration::Samples;
use crate::plan::{ConvertError, Options, Plan, Pruning};
use crate::predictions::Predictor;
use crate::progress::Progress;
use crate::source::Checkpoint;

/// Largest share of the channels that is left out.
const MOST_CHANNELS: f64 = 0.9;
/// Largest share of the heads that is left out.
const MOST_HEADS: f64 = 0.75;

/// Shares of a language model to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shares {
    /// Share of the layers.
    pub layers: f64,
    /// Share of each layer's feed-forward channels.
    pub channels: f64,
    /// Share of each layer's attention heads.
    pub heads: f64,
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            ("layers", self.layers),
            ("channels", self.channels),
            ("heads", self.heads),
        ];
        let used = named.iter().filter(|(_, share)| *share > 0.0);
        let parts: Vec<String> = used
            .map(|(name, share)| format!("{:.0} % of the {name}", 100.0 * share))
            .collect();
        match parts.is_empty() {
            true => f.write_str("nothing"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

/// A way to prune a model to a size, and its cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Shares that are left out.
    pub shares: Shares,
    /// Mean Kullback-Leibler divergence of the predictions from those of the whole model, both in 8
    /// bits, in nats.
    pub divergence: f64,
}

/// Leaves out the shares of a language model. Returns the numbers of the layers left out.
///
/// # Errors
/// If nothing would be left of a kind, or the model cannot be pruned so.
pub fn prune_shares(
    pruning: &mut Pruning,
    importance: &Importance,
    shares: &Shares,
) -> Result<Vec<usize>, ConvertError> {
    let mut removed = Vec::new();
    if shares.layers > 0.0 {
        removed = prune_layers(pruning, importance, shares.layers)?;
    }
    if shares.channels > 0.0 {
        prune_channels(pruning, importance, &removed, shares.channels)?;
    }
    if shares.heads > 0.0 {
        prune_heads(pruning, importance, &removed, shares.heads)?;
    }
    Ok(removed)
}

/// Tries to keep the share `ratio` of the parameters of the language model's layers in several ways:
/// fewer layers, channels or heads, or some of each. Returns all that are possible, the one with the
/// smallest divergence first. The temporary file `path` takes a record in 8 bits.
///
/// # Errors
/// If no way is possible, the samples do not fit the model, or the file cannot be written.
pub fn search(
    plan: &Plan,
    checkpoint: &Arc<Checkpoint>,
    samples: &Samples,
    importance: &Importance,
    ratio: f64,
    path: &Path,
    progress: &Progress,
) -> Result<Vec<Trial>, ConvertError> {
    let eight_bits = Options::eight_bits();
    let whole = plan.in_formats(checkpoint, &eight_bits)?;
    let reference = Predictor::new(&whole, checkpoint, samples, path, progress)?.run(None)?;
    let mut trials = Vec::new();
    let ways = ways(plan, importance, ratio);
    for (done, shares) in ways.iter().enumerate() {
        progress.report("trying ways to prune", done, ways.len());
        let mut pruning = Pruning::none(checkpoint);
        if prune_shares(&mut pruning, importance, shares).is_err() {
            continue;
        }
        let pruned = Plan::pruned(checkpoint, &eight_bits, pruning)?;
        // The step is one of several, so that a bar for its file would say little.
        let none = Progress::none();
        let found = Predictor::new(&pruned, checkpoint, samples, path, &none)?.run(None)?;
        let divergence = reference.divergence(&found);
        log::info!("without {shares}: divergence {divergence:.4} nats");
        trials.push(Trial {
            shares: *shares,
            divergence,
        });
    }
    trials.sort_by(|a, b| a.divergence.total_cmp(&b.divergence));
    match trials.is_empty() {
        true => Err(ConvertError::Prune {
            reason: format!("the layers cannot keep {ratio} of their parameters"),
        }),
        false => Ok(trials),
    }
}

/// Numbers of parameters of a layer.
struct Sizes {
    /// All parameters of products.
    all: f64,
    /// Parameters of the feed-forward network, all of which belong to a channel.
    channels: f64,
    /// Parameters of the attention that belong to a head that can be left out.
    heads: f64,
}

fn sizes(plan: &Plan, importance: &Importance) -> Sizes {
    let (mut attention, mut rest, mut output) = (0, 0, 0);
    for weight in &plan.weights {
        let spec = &weight.spec;
        let Some(name) = spec.name.strip_prefix("text.layers.0.") else {
            continue;
        };
        if spec.part != Part::Text || !spec.product {
            continue;
        }
        let size = spec.rows() * spec.cols();
        match name {
            "qkv.weight" => attention += size,
            "out.weight" => {
                attention += size;
                output = size;
            }
            _ => rest += size,
        }
    }
    // Of grouped queries, keys and values stay.
    let heads = importance.heads.first().map_or(0, Vec::len);
    let heads = match key_value_heads(&plan.info.files.config, heads) < heads {
        _ if heads == 0 => 0,
        true => 2 * output,
        false => attention,
    };
    Sizes {
        all: (attention + rest) as f64,
        channels: rest as f64,
        heads: heads as f64,
    }
}

/// Returns the shares to try.
fn ways(plan: &Plan, importance: &Importance, ratio: f64) -> Vec<Shares> {
    let sizes = sizes(plan, importance);
    let layers = importance.layers.len().max(1) as f64;
    let whole_layers = |share: f64| (share * layers).ceil() / layers;
    let cut = (1.0 - ratio) * sizes.all;
    let none = Shares::default();
    let mut ways = vec![
        Shares {
            channels: cut / sizes.channels,
            ..none
        },
        Shares {
            layers: whole_layers(1.0 - ratio),
            ..none
        },
    ];
    if sizes.heads > 0.0 {
        ways.push(Shares {
            heads: cut / sizes.heads,
            ..none
        });
        let both = cut / (sizes.channels + sizes.heads);
        ways.push(Shares {
            channels: both,
            heads: both,
            ..none
        });
    }
    // Half of it by layers, and the rest by the channels of those that are left.
    let few = whole_layers((1.0 - ratio) / 2.0);
    if few < 1.0 - ratio {
        let left = 1.0 - ratio / (1.0 - few);
        ways.push(Shares {
            layers: few,
            channels: left * sizes.all / sizes.channels,
            ..none
        });
    }
    ways.retain(|way| way.channels <= MOST_CHANNELS && way.heads <= MOST_HEADS);
    ways
}
