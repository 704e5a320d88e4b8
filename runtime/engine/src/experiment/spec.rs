//! Interface of an experiment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::error::ExperimentError;
use super::report::{Chart, Table};
use super::results::Results;
use super::sample::{Modality, Sample};

/// Description of an experiment.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// Name on the command line.
    pub name: &'static str,
    /// Question that it answers.
    pub question: &'static str,
    /// The quantity that is varied.
    pub varies: &'static str,
    /// The quantities that are measured.
    pub measures: &'static str,
    /// Models that it needs.
    pub needs: &'static str,
    /// Smallest number of models.
    pub models: usize,
    /// Kinds of questions that it uses of a manifest.
    pub uses: &'static [Modality],
    /// Only questions of kinds that all models take are used.
    pub common: bool,
    /// The values of `--values`; empty if the experiment does not vary a number.
    pub values: &'static str,
    /// The questions of a manifest are required.
    pub manifest: bool,
}

/// An experiment.
pub trait Experiment: Sync {
    /// Describes the experiment.
    fn about(&self) -> About;

    /// Returns the cases that the models and settings permit.
    ///
    /// # Errors
    /// If a model lacks a modality that the experiment needs, or there are too few models.
    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError>;

    /// Summarizes measurements. Cases without any are left out.
    fn findings(&self, results: &Results) -> Findings;
}

/// Name of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseKey {
    /// The model.
    pub model: String,
    /// Value of the varied quantity, as text.
    pub setting: String,
    /// The varied quantity, if it is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// Kind of the samples that it is measured with; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<Modality>,
}

/// Measures a case once.
type Measure = dyn Fn(&mut Bench, &Sample) -> Result<Values, ExperimentError>;

/// A measurement under one condition.
pub struct Case {
    /// Name of the case.
    pub key: CaseKey,
    /// Measures it once.
    pub(super) measure: Box<Measure>,
}

impl Case {
    /// Creates a case of a model.
    pub fn new(
        model: impl Into<String>,
        setting: impl Into<String>,
        measure: impl Fn(&mut Bench, &Sample) -> Result<Values, ExperimentError> + 'static,
    ) -> Self {
        Self {
            key: CaseKey {
                model: model.into(),
                setting: setting.into(),
                x: None,
                modality: None,
            },
            measure: Box::new(measure),
        }
    }

    /// Adds the varied quantity.
    pub fn at(mut self, x: f64) -> Self {
        self.key.x = Some(x);
        self
    }

    /// Restricts the case to samples of a kind.
    pub fn of(mut self, modality: Modality) -> Self {
        self.key.modality = Some(modality);
        self
    }
}

/// Values of one measurement by name, and the answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    /// Times in milliseconds, numbers of tokens, ...
    pub numbers: BTreeMap<String, f64>,
    /// The answer.
    pub text: Option<String>,
}

impl Values {
    /// Adds a value.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.numbers.insert(name.into(), value);
    }

    /// Adds a value.
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.set(name, value);
        self
    }

    /// Returns a value; 0 if it was not measured.
    pub fn get(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }
}

/// Summary of an experiment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Results by case.
    pub table: Table,
    /// Charts.
    pub charts: Vec<Chart>,
    /// Conclusions.
    pub notes: Vec<String>,
}
