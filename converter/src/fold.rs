//! Moving scales of a linear layer's inputs into the module before it.

use std::ops::Range;

use edge_lmm_models::weights::Fold;

use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;

/// A module whose outputs can be scaled, with the indices of the weights concerned.
#[derive(Debug)]
pub(crate) struct Producer {
    /// The weights of the module, with the outputs that their rows compute.
    pub weights: Vec<(usize, Range<usize>)>,
    /// The weights of the layers that take its outputs.
    pub consumers: Vec<(usize, Fold)>,
    /// `true` for each output that only these layers take. The others cannot be scaled.
    pub taken: Vec<bool>,
}

impl Plan {
    /// Finds a module, which is named as in the [`Fold`] of the layers after it.
    ///
    /// # Errors
    /// If no layer folds into it, or it does not have all the outputs that these layers take.
    pub(crate) fn producer(&self, module: &str) -> Result<Producer, String> {
        let consumers: Vec<(usize, Fold)> = (0..)
            .zip(&self.weights)
            .filter_map(|(at, weight)| Some((at, weight.spec.folds_into.clone()?)))
            .filter(|(_, fold)| fold.module == module)
            .collect();
        let (_, fold) = consumers.first().ok_or("no layer folds into it")?;
        let mut weights: Vec<(usize, Range<usize>)> = (0..)
            .zip(&self.weights)
            .filter(|(_, weight)| fold.scales(&weight.spec.name))
            .map(|(at, weight)| (at, 0..weight.spec.rows()))
            .collect();
        let tail = format!("{module}.tail.weight");
        if let Some(at) = (self.weights.iter()).position(|weight| weight.spec.name == tail) {
            // The rows of the module's weight come first, and its bias has those of both.
            let first = weights.iter().map(|(_, rows)| rows.end).min();
            let first = first.unwrap_or(0);
            weights.push((at, first..first + self.weights[at].spec.rows()));
        }
        let outputs = weights.iter().map(|(_, rows)| rows.end).max();
        let mut taken = vec![false; outputs.unwrap_or(0)];
        for (at, fold) in &consumers {
            for column in 0..self.weights[*at].spec.cols() {
                let row = fold.row(column);
                let slot = taken.get_mut(row);
                *slot.ok_or_else(|| format!("it has no output {row}"))? = true;
            }
        }
        Ok(Producer {
            weights,
            consumers,
            taken,
        })
    }

    /// Multiplies the outputs of a module by `scales` and divides the columns of all layers that
    /// take these outputs by them, which does not change the model's function. A module is named
    /// as in the [`Fold`] of the layers after it.
    ///
    /// # Errors
    /// If the module is unknown, there is not one positive finite scale per output, or an output
    /// that goes elsewhere has another scale than 1.
    pub fn fold(&mut self, module: &str, scales: &[f32]) -> Result<(), ConvertError> {
        let invalid = |reason: String| ConvertError::Fold {
            module: module.to_owned(),
            reason,
        };
        let Producer {
            weights,
            consumers,
            taken,
        } = self.producer(module).map_err(invalid)?;
        if taken.len() != scales.len() {
            return Err(invalid(format!(
                "{} scales, expected {}",
                scales.len(),
                taken.len()
            )));
        }
        if let Some(scale) = scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(invalid(format!("a scale is {scale}, expected more than 0")));
        }
        let other = |&row: &usize| !taken[row] && scales[row] != 1.0;
        if let Some(row) = (0..scales.len()).find(other) {
            return Err(invalid(format!(
                "output {row} goes elsewhere, too, and has a scale of {}",
                scales[row]
            )));
        }
        for (at, rows) in weights {
            self.weights[at].factors.multiply_rows(&scales[rows]);
        }
        for (at, fold) in consumers {
            divide_columns(&mut self.weights[at], &fold, scales);
        }
        Ok(())
    }
}

fn divide_columns(weight: &mut PlannedWeight, fold: &Fold, scales: &[f32]) {
    let inverse: Vec<f32> = (0..weight.spec.cols())
        .map(|column| 1.0 / scales[fold.row(column)])
        .collect();
    weight.factors.multiply_columns(&inverse);
}
