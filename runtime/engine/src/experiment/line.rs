//! Lines of a results file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spec::{CaseKey, Values};

/// One measurement, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The model.
    pub model: String,
    /// Value of the varied quantity, as text.
    pub setting: String,
    /// Question or repeat.
    pub sample: String,
    /// Result.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Result of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// It failed.
    Failed {
        /// Message with its causes, in one line.
        error: String,
    },
    /// It was made.
    Measured {
        /// Values by name.
        values: BTreeMap<String, f64>,
        /// The answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
}

impl Line {
    /// Creates the line of a measurement.
    pub fn new(case: &CaseKey, sample: &str, outcome: Result<Values, String>) -> Self {
        Self {
            model: case.model.clone(),
            setting: case.setting.clone(),
            sample: sample.to_owned(),
            outcome: match outcome {
                Ok(values) => Outcome::Measured {
                    values: values.numbers,
                    text: values.text,
                },
                Err(error) => Outcome::Failed { error },
            },
        }
    }

    /// Returns `true` if the measurement failed.
    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }

    /// Returns what identifies a measurement.
    pub fn key(&self) -> (String, String, String) {
        (
            self.model.clone(),
            self.setting.clone(),
            self.sample.clone(),
        )
    }
}
