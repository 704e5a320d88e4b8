//! Question sets: `manifest.csv` with the columns `id,media_path,question,answer,task`.
//!
//! Further columns are optional: `answers` and `choices` (JSON lists of strings), `metric` (a name of
//! [`Metric`]) and `sha256` (of the medium). Columns with other names are ignored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::metric::Metric;

/// Error of reading a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The file cannot be opened.
    #[error("cannot open the manifest {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: csv::Error,
    },
    /// A row is not a question.
    #[error(
        "{}: expected the columns id,media_path,question,answer,task: {source}", path.display()
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        source: csv::Error,
    },
    /// The file has no rows.
    #[error("{} has no questions", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A question with the answer that counts as right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Question {
    /// Name of the row.
    pub id: String,
    /// The medium, relative to the manifest; empty for text alone.
    pub media_path: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// Kind of question.
    #[serde(default)]
    pub task: String,
    /// All accepted answers, of several annotators for example; empty if `answer` is the only one.
    #[serde(default, deserialize_with = "list")]
    pub answers: Vec<String>,
    /// The texts of the options A, B, C, ... of a multiple-choice question.
    #[serde(default, deserialize_with = "list")]
    pub choices: Vec<String>,
    /// The metric of the question set.
    #[serde(default)]
    pub metric: Option<Metric>,
    /// SHA-256 of the medium in hexadecimal digits; empty if unknown.
    #[serde(default)]
    pub sha256: String,
}

impl Question {
    /// Returns the score of an answer from 0 to 1, by `metric`, or by the metric of the question,
    /// or by [`Metric::Exact`].
    pub fn score(&self, answer: &str, metric: Option<Metric>) -> f64 {
        let metric = metric.or(self.metric).unwrap_or_default();
        let only = std::slice::from_ref(&self.answer);
        let accepted = if self.answers.is_empty() {
            only
        } else {
            &self.answers
        };
        metric.score(answer, accepted, &self.choices)
    }
}

/// Reads a JSON list of strings from a cell; an empty cell is an empty list.
fn list<'de, D: Deserializer<'de>>(cell: D) -> Result<Vec<String>, D::Error> {
    let cell = String::deserialize(cell)?;
    if cell.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&cell).map_err(|error| {
        let start: String = cell.chars().take(40).collect();
        serde::de::Error::custom(format!(
            "expected a JSON list of texts, found {start:?}: {error}"
        ))
    })
}

/// A question set.
#[derive(Debug, Clone)]
pub struct Manifest {
    folder: PathBuf,
    /// Rows of the manifest.
    pub questions: Vec<Question>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column or has no row.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let mut reader = csv::Reader::from_path(path).map_err(|source| ManifestError::Open {
            path: path.to_owned(),
            source,
        })?;
        let questions = reader
            .deserialize()
            .collect::<Result<Vec<Question>, _>>()
            .map_err(|source| ManifestError::Row {
                path: path.to_owned(),
                source,
            })?;
        if questions.is_empty() {
            return Err(ManifestError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            questions,
        })
    }

    /// Returns the medium of a question, if it has one.
    pub fn media_path(&self, question: &Question) -> Option<PathBuf> {
        (!question.media_path.is_empty()).then(|| self.folder.join(&question.media_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Question>, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.csv");
        std::fs::write(&path, text).unwrap();
        Manifest::open(&path).map(|manifest| manifest.questions)
    }

    #[test]
    fn optional_columns_may_be_absent_or_empty() {
        let old = read("id,media_path,question,answer,task\n1,a.png,what?,cat,t\n").unwrap();
        let header = "id,media_path,question,answer,task,answers,choices,metric,sha256,other\n";
        let new = read(&format!("{header}1,a.png,what?,cat,t,,,,,x\n")).unwrap();
        assert_eq!(old, new);
        assert_eq!(old[0].score(" Cat", None), 1.0);
        let row = "1,a.png,what?,B,t,,\"[\"\"dog\"\",\"\"cat\"\"]\",choice,00,x\n";
        let choice = read(&format!("{header}{row}")).unwrap();
        assert_eq!(choice[0].choices, ["dog", "cat"]);
        assert_eq!(choice[0].score("(B)", None), 1.0);
        assert_eq!(choice[0].score("(B)", Some(Metric::Exact)), 0.0);
        let row = "1,a.png,what?,12,t,\"[\"\"twelve\"\",\"\"12\"\"]\",,,,\n";
        let accepted = read(&format!("{header}{row}")).unwrap();
        assert_eq!(accepted[0].score("Twelve", None), 1.0);
    }

    #[test]
    fn damaged_cells_are_named() {
        let header = "id,media_path,question,answer,answers,metric\n";
        let error = read(&format!("{header}1,,q,a,[1,\n")).unwrap_err();
        let error = crate::one_line(&error);
        assert!(error.contains("JSON list"), "{error}");
        let error = crate::one_line(&read(&format!("{header}1,,q,a,,bleu\n")).unwrap_err());
        assert!(error.contains("bleu") && error.contains("anls"), "{error}");
    }
}
