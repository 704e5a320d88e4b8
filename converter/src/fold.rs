//! Moving scales of a linear layer's inputs into the module before it.

use edge_lmm_models::weights::Fold;

use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;

impl Plan {
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
        let consumers: Vec<(usize, Fold)> = (0..)
            .zip(&self.weights)
            .filter_map(|(at, weight)| Some((at, weight.spec.folds_into.clone()?)))
            .filter(|(_, fold)| fold.module == module)
            .collect();
        let Some((_, fold)) = consumers.first() else {
            return Err(invalid("no layer folds into it".to_owned()));
        };
        let producers: Vec<usize> = (0..self.weights.len())
            .filter(|&at| fold.scales(&self.weights[at].spec.name))
            .collect();
        let outputs = producers.first().map(|&at| self.weights[at].spec.rows());
        if outputs != Some(scales.len()) {
            return Err(invalid(format!(
                "{} scales, expected {}",
                scales.len(),
                outputs.unwrap_or(0)
            )));
        }
        if let Some(scale) = scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(invalid(format!("a scale is {scale}, expected more than 0")));
        }
        let mut taken = vec![false; scales.len()];
        for (at, fold) in &consumers {
            for column in 0..self.weights[*at].spec.cols() {
                let row = fold.row(column);
                let slot = taken.get_mut(row);
                *slot.ok_or_else(|| invalid(format!("output {row} is stored by itself")))? = true;
            }
        }
        let other = |&row: &usize| !taken[row] && scales[row] != 1.0;
        if let Some(row) = (0..scales.len()).find(other) {
            return Err(invalid(format!(
                "output {row} goes elsewhere, too, and has a scale of {}",
                scales[row]
            )));
        }
        for at in producers {
            self.weights[at].factors.multiply_rows(scales);
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
