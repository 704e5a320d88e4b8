//! Measurements by case.

use std::collections::{BTreeMap, HashMap};

use super::line::{Line, Outcome};
use super::plan::Plan;
use super::spec::CaseKey;
use crate::statistics::Statistics;

/// Measurements of an experiment.
pub struct Results<'a> {
    /// Parameters of the experiment.
    pub plan: &'a Plan,
    cases: Vec<CaseResults<'a>>,
}

/// Measurements of one case.
pub struct CaseResults<'a> {
    /// The case.
    pub key: &'a CaseKey,
    measured: Vec<Measured<'a>>,
}

/// One measurement.
pub struct Measured<'a> {
    /// Name of the sample.
    pub sample: &'a str,
    /// Values by name.
    pub values: &'a BTreeMap<String, f64>,
    /// The answer.
    pub text: Option<&'a str>,
}

impl<'a> Results<'a> {
    /// Sorts lines by case. Failed measurements are left out, and so are cases without any.
    pub fn new(plan: &'a Plan, lines: &'a [Line]) -> Self {
        let mut by_case: HashMap<(&str, &str), Vec<Measured<'a>>> = HashMap::new();
        for line in lines {
            if let Outcome::Measured { values, text } = &line.outcome {
                let case = (line.model.as_str(), line.setting.as_str());
                by_case.entry(case).or_default().push(Measured {
                    sample: &line.sample,
                    values,
                    text: text.as_deref(),
                });
            }
        }
        let cases = plan.cases.iter().filter_map(|key| {
            let case = (key.model.as_str(), key.setting.as_str());
            let measured = by_case.remove(&case)?;
            Some(CaseResults { key, measured })
        });
        let cases = cases.collect();
        Self { plan, cases }
    }

    /// Returns the cases with their measurements.
    pub fn cases(&self) -> &[CaseResults<'a>] {
        &self.cases
    }

    /// Returns the models that have measurements, in order.
    pub fn models(&self) -> Vec<&'a str> {
        let mut models: Vec<&str> = self.cases.iter().map(|case| &*case.key.model).collect();
        models.dedup();
        let mut unique: Vec<&str> = Vec::new();
        for model in models {
            if !unique.contains(&model) {
                unique.push(model);
            }
        }
        unique
    }

    /// Returns the cases of a model.
    pub fn of<'s>(&'s self, model: &'s str) -> impl Iterator<Item = &'s CaseResults<'a>> {
        self.cases
            .iter()
            .filter(move |case| case.key.model == model)
    }

    /// Returns a case of a model.
    pub fn case(&self, model: &str, setting: &str) -> Option<&CaseResults<'a>> {
        self.cases
            .iter()
            .find(|case| case.key.model == model && case.key.setting == setting)
    }
}

impl<'a> CaseResults<'a> {
    /// Returns the measurements.
    pub fn measured(&self) -> &[Measured<'a>] {
        &self.measured
    }

    /// Returns all values of a name.
    pub fn values(&self, name: &str) -> Vec<f64> {
        let values = self.measured.iter();
        values
            .filter_map(|measured| measured.values.get(name).copied())
            .collect()
    }

    /// Returns the median of a value.
    pub fn median(&self, name: &str) -> Option<f64> {
        Statistics::of(&self.values(name)).map(|statistics| statistics.median)
    }

    /// Returns the median of a value; 0 if it was not measured.
    pub fn median_or_zero(&self, name: &str) -> f64 {
        self.median(name).unwrap_or_default()
    }

    /// Returns the share of right answers in percent.
    pub fn accuracy(&self) -> Option<f64> {
        Statistics::of(&self.values("right")).map(|statistics| 100.0 * statistics.mean)
    }

    /// Returns the name for charts and sentences.
    pub fn label(&self, models: usize) -> String {
        match models {
            1 => self.key.setting.clone(),
            _ => format!("{}, {}", self.key.model, self.key.setting),
        }
    }
}
