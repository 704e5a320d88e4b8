//! Errors of experiments.

use std::io;
use std::path::PathBuf;

use edge_lmm_models::ModelError;
use edge_lmm_models::preprocess::PreprocessError;
use edge_lmm_record::output::OutputError;

use super::sample::Modality;
use crate::error::EngineError;
use crate::media::MediaError;

/// Error of an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// The model fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A medium cannot be read.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A medium cannot be prepared.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// Some models lack the modality that an experiment needs.
    #[error("{experiment} needs {needs}; {models} cannot take {modality}", modality = modality.plural())]
    Modality {
        /// The experiment.
        experiment: &'static str,
        /// Models that it needs.
        needs: &'static str,
        /// The given models.
        models: String,
        /// The modality that they do not support.
        modality: Modality,
    },
    /// Too few models.
    #[error("{experiment} needs {needs}; {found} given")]
    Models {
        /// The experiment.
        experiment: &'static str,
        /// Models that it needs.
        needs: &'static str,
        /// The number of given models, as the start of a sentence.
        found: String,
    },
    /// The manifest has no question that the experiment can use.
    #[error("{path}: none of its {questions} questions is about {kinds}, which {experiment} uses")]
    NoQuestions {
        /// The manifest.
        path: String,
        /// Its questions.
        questions: usize,
        /// Kinds of media.
        kinds: String,
        /// The experiment.
        experiment: &'static str,
    },
    /// A value of the varied quantity cannot be used.
    #[error("--values: {0}")]
    Value(String),
    /// The experiment cannot be made on this machine or with these options.
    #[error("{0}")]
    Impossible(String),
    /// A shard without samples.
    #[error(
        "shard {shard} has no measurements, as there are only {samples} samples: use fewer shards, \
         or a larger --repeat or --limit"
    )]
    EmptyShard {
        /// The shard.
        shard: super::Shard,
        /// All samples.
        samples: usize,
    },
    /// The folder of results belongs to another run.
    #[error(
        "{} holds results of another run: {difference}; choose another folder, or the same \
         options to continue", path.display()
    )]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// First difference.
        difference: String,
    },
    /// Another program writes to the folder.
    #[error(
        "another program is writing its results to {}; wait until it ends, or choose another \
         folder", .0.display()
    )]
    Busy(PathBuf),
    /// The folder of a merge has results.
    #[error("{} has results already; choose another folder", .0.display())]
    NotEmpty(PathBuf),
    /// A folder without results.
    #[error("{} is not a folder of results: it has no plan.json", .0.display())]
    NoResults(PathBuf),
    /// A line cannot be read.
    #[error("{} is damaged in line {line}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Number of the line.
        line: usize,
        /// Description of the error.
        reason: String,
    },
    /// A measurement cannot be written.
    #[error(
        "cannot write to {}: {source}; its {count} measurements are kept: run the same command \
         again to continue", path.display()
    )]
    Append {
        /// The file.
        path: PathBuf,
        /// Measurements in it.
        count: usize,
        /// The error of the system.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// An output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Shards cannot be joined.
    #[error("{0}")]
    Merge(String),
    /// An experiment of another version of this program.
    #[error("there is no experiment {0:?}: see edge-lmm bench list")]
    Unknown(String),
}

impl From<ModelError> for ExperimentError {
    fn from(error: ModelError) -> Self {
        Self::Engine(error.into())
    }
}
