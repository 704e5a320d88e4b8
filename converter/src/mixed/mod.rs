//! Mixed precision: 8 bits for the weights whose error in 4 bits changes the predictions most for
//! their size.
//!
//! A few weights of a model often cost much more than the others: with few key-value heads, the
//! values of the attention above all, which are therefore stored apart from queries and keys if they
//! need it.

mod sensitivity;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use edge_lmm_models::weights::Part;
use edge_lmm_ops::Format;

use crate::calibration::{Calibration, PackedWeights, Samples};
use crate::plan::{ConvertError, Options, Plan};
use crate::planned_weight::PlannedWeight;
use crate::progress::Progress;
use crate::source::Checkpoint;

pub use sensitivity::Sensitivity;

/// Bytes of a record beside its weights and its tokenizer.
const OVERHEAD: usize = 128 << 10;

/// The size of a record with mixed precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Mean bits of the weights of the language model, without embeddings and output head.
    Bits(f64),
    /// Bytes of the record. The output head competes with the other weights.
    Bytes(usize),
}

/// The weights that a budget allows in 8 bits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mixed {
    /// Their formats, for [`Options::weights`].
    pub weights: BTreeMap<String, Format>,
    /// All weights that could have been chosen, by falling sensitivity per byte.
    pub sensitivities: Vec<Sensitivity>,
}

/// A search for the weights that need 8 bits.
pub struct Search<'a> {
    /// The model with the formats that are chosen otherwise.
    pub plan: &'a Plan,
    /// These formats.
    pub options: &'a Options,
    /// Its weights.
    pub checkpoint: &'a Arc<Checkpoint>,
    /// Texts and questions on which predictions are compared.
    pub samples: &'a Samples,
    /// Path of a temporary record of the model in half precision.
    pub path: &'a Path,
    /// Receives the progress.
    pub progress: &'a Progress,
}

impl Search<'_> {
    /// Measures the weights, which `rounding` rounds to 4 bits, or rounding to the nearest values
    /// without it, and chooses among them.
    ///
    /// # Errors
    /// If the budget is too small for a record without 8-bit weights, the samples do not fit the model,
    /// or the file cannot be written.
    pub fn run(
        &self,
        budget: Budget,
        rounding: Option<Calibration>,
    ) -> Result<Mixed, ConvertError> {
        let Self {
            plan,
            options,
            checkpoint,
            progress,
            ..
        } = *self;
        let mut spare = spare(plan, checkpoint, budget)?;
        let split = Options {
            weights: tails(plan, Format::Q4),
            ..options.clone()
        };
        let mut split = plan.in_formats(checkpoint, &split)?;
        let mut rounded = match rounding {
            Some(rounding) => {
                let (done, all) = (Cell::new(0), split.bytes());
                let rounded = rounding.run(&mut split, checkpoint, &|_, bytes| {
                    done.set(done.get() + bytes);
                    progress.report("rounding the weights", done.get(), all);
                });
                rounded?
            }
            None => PackedWeights::default(),
        };
        let candidate = |weight: &&PlannedWeight| {
            let fixed = matches!(budget, Budget::Bits(_)) && weight.spec.is_vocabulary();
            is_four_bits(weight) && !fixed
        };
        let candidates: Vec<&PlannedWeight> = split.weights.iter().filter(candidate).collect();
        // Products with 8-bit weights round their inputs, too, whose noise would hide small effects.
        let half = Options {
            text: Format::F16,
            head: None,
            weights: tails(plan, Format::F16),
            ..options.clone()
        };
        let half = plan.in_formats(checkpoint, &half)?;
        let mut sensitivities = sensitivity::measure(self, &half, &candidates, &mut rounded)?;
        sensitivities.sort_by(|a, b| b.per_byte().total_cmp(&a.per_byte()));
        let mut weights = BTreeMap::new();
        for weight in &sensitivities {
            if weight.bytes <= spare {
                spare -= weight.bytes;
                weights.insert(weight.name.clone(), Format::Q8);
            }
        }
        Ok(Mixed {
            weights: joined(weights, tails(plan, Format::Q8).into_keys()),
            sensitivities,
        })
    }
}

fn is_four_bits(weight: &PlannedWeight) -> bool {
    let spec = &weight.spec;
    // The layer that drafts tokens has no influence on the answers.
    spec.part == Part::Text && spec.product && !spec.is_mtp() && weight.format == Some(Format::Q4)
}

/// Returns the bytes that a budget has left over.
fn spare(plan: &Plan, checkpoint: &Checkpoint, budget: Budget) -> Result<usize, ConvertError> {
    let (allowed, needed, unit) = match budget {
        Budget::Bytes(bytes) => {
            let needed = plan.bytes() + checkpoint.tokenizer.len() + OVERHEAD;
            (bytes as f64, needed as f64, "bytes")
        }
        Budget::Bits(bits) => {
            let layers = |weight: &&PlannedWeight| {
                let spec = &weight.spec;
                let is_layer = !spec.is_vocabulary() && !spec.is_mtp();
                spec.part == Part::Text && spec.product && is_layer
            };
            let layers: Vec<&PlannedWeight> = plan.weights.iter().filter(layers).collect();
            let count: usize = layers.iter().map(|w| w.spec.rows() * w.spec.cols()).sum();
            let bytes: usize = layers.iter().map(|w| w.bytes).sum();
            let per_bit = count.max(1) as f64 / 8.0;
            if bits * per_bit < bytes as f64 {
                return Err(too_small(bits, bytes as f64 / per_bit, "bits per weight"));
            }
            (bits * per_bit, bytes as f64, "bytes")
        }
    };
    if allowed < needed {
        return Err(too_small(allowed, needed, unit));
    }
    Ok((allowed - needed) as usize)
}

fn too_small(budget: f64, needed: f64, unit: &str) -> ConvertError {
    let digits = if unit == "bytes" { 0 } else { 2 };
    ConvertError::Budget {
        reason: format!(
            "found {budget:.digits$} {unit}, expected at least the {needed:.digits$} of a record \
             with the formats that are chosen otherwise"
        ),
    }
}

/// Returns the values of all attentions of the language model that are stacked with queries and keys,
/// as weights of their own.
fn tails(plan: &Plan, format: Format) -> BTreeMap<String, Format> {
    let stacked = plan.weights.iter().filter(|weight| is_four_bits(weight));
    stacked
        .filter(|weight| weight.spec.sources.len() == 3)
        .filter_map(|weight| weight.spec.name.strip_suffix(".qkv.weight"))
        .map(|attention| (format!("{attention}.qkv.tail.weight"), format))
        .collect()
}

/// Stores the values with queries and keys where both have the same format, and apart where not.
fn joined(
    mut weights: BTreeMap<String, Format>,
    tails: impl Iterator<Item = String>,
) -> BTreeMap<String, Format> {
    for tail in tails {
        let whole = tail.replace(".tail.weight", ".weight");
        if weights.contains_key(&whole) && weights.remove(&tail).is_none() {
            weights.insert(tail, Format::Q4);
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_apart_only_in_a_format_of_their_own() {
        let weights = |names: &[(&str, Format)]| -> BTreeMap<String, Format> {
            let named = names
                .iter()
                .map(|&(name, format)| (name.to_owned(), format));
            named.collect()
        };
        let tails = || ["a.tail.weight", "b.tail.weight", "c.tail.weight"].map(str::to_owned);
        let chosen = weights(&[
            ("a.weight", Format::Q8),
            ("a.tail.weight", Format::Q8),
            ("b.weight", Format::Q8),
            ("c.tail.weight", Format::Q8),
        ]);
        let expected = weights(&[
            ("a.weight", Format::Q8),
            ("b.weight", Format::Q8),
            ("b.tail.weight", Format::Q4),
            ("c.tail.weight", Format::Q8),
        ]);
        assert_eq!(joined(chosen, tails().into_iter()), expected);
    }
}
