//! Scales of inputs that were chosen, and their way into the record.
//!
//! The samples go on as if there were no scales: a packed weight whose columns were multiplied by
//! scales is supplied to them with the columns divided again. Only when all weights are packed are the
//! scales moved into the modules before: into norms and biases as they are written, and into packed
//! weights by their group scales.

use std::collections::BTreeMap;
use std::ops::Range;

use edge_lmm_models::weights::{Fold, WeightSpec};
use edge_lmm_ops::{Format, MatrixShape};

use super::PackedWeights;
use super::awq::{self, Layer, Means};
use super::rescale::scale_rows;
use crate::fold::Producer;
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::rows::read_rows;
use crate::source::Checkpoint;

/// Rows of each layer that the search rounds, in runs of [`RUN`].
const ROWS: usize = 256;
/// Rows that are read together.
const RUN: usize = 8;

/// The factors of the inputs of layers, by the module that computes these inputs; `None` for a module
/// that is left as it is.
#[derive(Default)]
pub(super) struct Scales(BTreeMap<String, Option<Vec<f32>>>);

impl Scales {
    /// Returns the factors of a weight's columns; `None` if they have none.
    pub fn of_columns(&self, spec: &WeightSpec) -> Option<Vec<f32>> {
        let fold = spec.folds_into.as_ref()?;
        let scales = self.0.get(&fold.module)?.as_ref()?;
        Some((0..spec.cols()).map(|c| scales[fold.row(c)]).collect())
    }

    /// Chooses the factors of the inputs of the weight `index`, which have these mean squares, if
    /// they are not chosen yet and can be moved to the module that computes the inputs.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn choose(
        &mut self,
        index: usize,
        mean_squares: &[f32],
        plan: &Plan,
        checkpoint: &Checkpoint,
        packed: &mut PackedWeights,
    ) -> Result<(), ConvertError> {
        let Some(fold) = &plan.weights[index].spec.folds_into else {
            return Ok(());
        };
        if self.0.contains_key(&fold.module) {
            return Ok(());
        }
        let mut scales = None;
        if let Some(producer) = scalable(plan, &fold.module, packed) {
            let of_outputs = of_outputs(mean_squares, fold, producer.taken.len());
            let mut layers = Vec::new();
            for (at, fold) in producer.consumers {
                let weight = &plan.weights[at];
                if weight.format == Some(Format::Q4) {
                    layers.push(some_rows(checkpoint, weight, fold)?);
                }
            }
            let found = awq::search(&layers, &of_outputs);
            let differ = found.iter().any(|&scale| scale != 1.0);
            if differ && take(plan, &producer.weights, &found, packed)?.is_some() {
                scales = Some(found);
            }
        }
        self.0.insert(fold.module.clone(), scales);
        Ok(())
    }

    /// Divides the outputs of the modules by the factors of the inputs behind them: those of packed
    /// weights in `packed`, the others and all columns in `plan`.
    ///
    /// # Errors
    /// If a packed weight cannot be read or written.
    pub fn fold_into(
        self,
        plan: &mut Plan,
        packed: &mut PackedWeights,
    ) -> Result<(), ConvertError> {
        for (module, scales) in self.0 {
            let Some(scales) = scales else {
                continue;
            };
            let producer = plan.producer(&module);
            let producer = producer.expect("it was found when the scales were chosen");
            let scaled = take(plan, &producer.weights, &scales, packed)?;
            let scaled = scaled.expect("it was possible when the scales were chosen");
            for (at, bytes) in scaled {
                packed.replace(&plan.weights[at].spec.name, &bytes)?;
            }
            plan.fold(&module, &inverse(&scales))?;
        }
        Ok(())
    }
}

/// Returns a module that scales can be moved to; `None` if no layer after it profits, or something is
/// in the way.
fn scalable(plan: &Plan, module: &str, packed: &PackedWeights) -> Option<Producer> {
    let producer = plan.producer(module).ok()?;
    let mut weights = (producer.weights.iter()).map(|(at, _)| &plan.weights[*at]);
    let mut consumers = producer.consumers.iter().map(|(at, _)| &plan.weights[*at]);
    // A module that is not packed yet would be packed with the scales, which the samples do not see.
    let is_ready = weights.all(|w| w.format.is_none() || packed.contains(&w.spec.name));
    let is_fit = consumers.clone().any(|w| w.format == Some(Format::Q4));
    // The float values of an output head would take too much memory.
    let is_free = consumers.all(|w| !packed.contains(&w.spec.name) && !w.spec.is_vocabulary());
    (is_ready && is_fit && is_free).then_some(producer)
}

/// Returns the mean squares of a module's outputs, as far as they are those of the inputs of a layer.
fn of_outputs(mean_squares: &[f32], fold: &Fold, outputs: usize) -> Vec<Option<f32>> {
    let mut means = Means::new(outputs);
    for (column, square) in mean_squares.iter().enumerate() {
        means.add(fold.row(column), *square);
    }
    means.finish()
}

/// Reads runs of rows at equal distances.
fn some_rows(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    fold: Fold,
) -> Result<Layer, ConvertError> {
    let (rows, cols) = (weight.spec.rows(), weight.spec.cols());
    let runs = rows.div_ceil(RUN);
    let count = runs.min(ROWS / RUN);
    let mut values = Vec::new();
    for run in 0..count {
        let first = run * runs / count * RUN;
        let rows = first..(first + RUN).min(rows);
        read_rows(checkpoint, weight, rows, &mut values)?;
    }
    Ok(Layer {
        shape: MatrixShape::new(Format::Q4, values.len() / cols, cols),
        values,
        fold,
    })
}

fn inverse(scales: &[f32]) -> Vec<f32> {
    scales.iter().map(|scale| 1.0 / scale).collect()
}

/// Places of weights in a plan, and their packed bytes.
type Packed = Vec<(usize, Vec<u8>)>;

/// Returns the packed weights of a module with their rows divided by `scales`; `None` if the numbers
/// of one of them would be too large or too small for its format.
fn take(
    plan: &Plan,
    weights: &[(usize, Range<usize>)],
    scales: &[f32],
    packed: &mut PackedWeights,
) -> Result<Option<Packed>, ConvertError> {
    let mut scaled = Vec::new();
    for (at, rows) in weights {
        let PlannedWeight { spec, format, .. } = &plan.weights[*at];
        let (Some(format), Some((mut bytes, _))) = (*format, packed.read(&spec.name)?) else {
            continue;
        };
        let shape = MatrixShape::new(format, spec.rows(), spec.cols());
        if !scale_rows(shape, &mut bytes, &inverse(&scales[rows.clone()])) {
            return Ok(None);
        }
        scaled.push((*at, bytes));
    }
    Ok(Some(scaled))
}
