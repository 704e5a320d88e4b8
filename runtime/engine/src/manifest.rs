//! Question sets: `manifest.csv` with the columns `id,media_path,question,answer,task`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

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
    /// Its rows.
    pub questions: Vec<Question>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column or has no row.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut reader = csv::Reader::from_path(path)
            .with_context(|| format!("cannot open the manifest {}", path.display()))?;
        let questions = reader
            .deserialize()
            .collect::<Result<Vec<Question>, _>>()
            .with_context(|| {
                format!(
                    "{}: expected the columns id,media_path,question,answer,task",
                    path.display()
                )
            })?;
        if questions.is_empty() {
            bail!("{} has no questions", path.display());
        }
        Ok(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            questions,
        })
    }

    /// The medium of a question, if it has one.
    pub fn media_path(&self, question: &Question) -> Option<PathBuf> {
        (!question.media_path.is_empty()).then(|| self.folder.join(&question.media_path))
    }
}

/// Whether an answer is right: the same text but for case and surrounding blanks.
pub fn is_right(answer: &str, expected: &str) -> bool {
    answer.trim().to_lowercase() == expected.trim().to_lowercase()
}
