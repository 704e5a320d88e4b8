//! Plan of an experiment: what is measured, and with which parameters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sample::SampleKey;
use super::shard::Shard;
use super::spec::CaseKey;
use crate::environment::Environment;

/// Parameters of an experiment, stored beside its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The experiment.
    pub experiment: String,
    /// Models, options and question set; shards and resumed runs must agree in them.
    pub parameters: BTreeMap<String, Value>,
    /// The cases.
    pub cases: Vec<CaseKey>,
    /// All samples, including those of other shards.
    pub samples: Vec<SampleKey>,
    /// Part of the samples that is measured here.
    pub shard: Shard,
    /// Environment of the measurement; several after a merge.
    pub environments: Vec<Environment>,
}

/// A measurement of a [`Plan`]: indices of its sample and its case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    pub sample: usize,
    pub case: usize,
}

impl Plan {
    /// Adds the state of the machine after the measurements.
    pub fn finish(&mut self) {
        for environment in &mut self.environments {
            environment.finish();
        }
    }

    /// Returns the measurements of this shard in their order: the cases alternate within a sample.
    pub fn units(&self) -> Vec<Unit> {
        let samples = self.samples.iter().enumerate();
        let own = samples.filter(|(i, _)| self.shard.has(*i));
        own.flat_map(|(sample, key)| {
            let cases = self.cases.iter().enumerate();
            let fitting = cases.filter(|(_, case)| key.suits(case.modality));
            fitting.map(move |(case, _)| Unit { sample, case })
        })
        .collect()
    }

    /// Returns the key of a measurement's line.
    pub fn key(&self, unit: Unit) -> (String, String, String) {
        let (case, sample) = (&self.cases[unit.case], &self.samples[unit.sample]);
        (case.model.clone(), case.setting.clone(), sample.id.clone())
    }

    /// Describes the first difference to the plan of another run; `None` if their results belong
    /// together.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.experiment != other.experiment {
            return Some(differ(
                "the experiment",
                &self.experiment,
                &other.experiment,
            ));
        }
        let names = self.parameters.keys().chain(other.parameters.keys());
        for name in names {
            let (ours, theirs) = (self.parameters.get(name), other.parameters.get(name));
            if ours != theirs {
                let shown =
                    |value: Option<&Value>| value.map_or("not set".into(), Value::to_string);
                return Some(differ(name, &shown(ours), &shown(theirs)));
            }
        }
        if self.cases != other.cases {
            let names = |plan: &Self| {
                let names = plan.cases.iter().map(|case| case.setting.as_str());
                names.collect::<Vec<_>>().join(", ")
            };
            return Some(differ("what is varied", &names(self), &names(other)));
        }
        // The kind of a medium that cannot be opened is not known.
        let named = |sample: &SampleKey| (sample.id.clone(), sample.task.clone());
        let samples = |plan: &Self| plan.samples.iter().map(named).collect::<Vec<_>>();
        (samples(self) != samples(other)).then(|| {
            let count = |plan: &Self| format!("{} samples", plan.samples.len());
            differ("the question set", &count(self), &count(other))
        })
    }
}

fn differ(what: &str, here: &str, there: &str) -> String {
    format!("{what} is {here} here and {there} there")
}
