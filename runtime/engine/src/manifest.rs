//! Question sets: `manifest.csv` with the columns `id,media_path,question,answer,task`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

/// Returns `true` if an answer is correct: the same text, ignoring case and surrounding whitespace.
pub fn is_right(answer: &str, expected: &str) -> bool {
    answer.trim().to_lowercase() == expected.trim().to_lowercase()
}
