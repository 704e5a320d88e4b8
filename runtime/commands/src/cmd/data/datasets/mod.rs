//! The datasets and the layouts in which they are published.

mod activitynet_qa;
mod audiocaps;
mod docvqa;
mod mmbench;
mod textvqa;
mod video_mme;

use std::collections::HashMap;

use anyhow::ensure;
use clap::ValueEnum;
use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::row::Row;
use super::sample::Sample;

/// A dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Dataset {
    /// Video-MME: multiple-choice questions about videos (https://arxiv.org/abs/2405.21075)
    VideoMme,
    /// ActivityNet-QA: questions about videos (https://arxiv.org/abs/1906.02467)
    ActivitynetQa,
    /// AudioCaps: captions of sounds (https://aclanthology.org/N19-1011)
    Audiocaps,
    /// MMBench: multiple-choice questions about images (https://arxiv.org/abs/2307.06281)
    Mmbench,
    /// DocVQA: questions about document pages (https://arxiv.org/abs/2007.00398)
    Docvqa,
    /// TextVQA: questions about text in photos (https://arxiv.org/abs/1904.08920)
    Textvqa,
    /// Generated shapes, clips and beeps, for the small models of this project; needs no source
    Synthetic,
}

/// Layout in which a dataset is published.
pub struct Layout {
    /// The kind of its media.
    pub kind: MediaKind,
    /// The metric that it is scored with.
    pub metric: Metric,
    /// The split with published answers that results are usually reported for.
    pub split: &'static str,
    /// Words in the paths of other datasets in the same repository.
    pub others: &'static [&'static str],
    /// The column that holds the media, where the table has them.
    pub column: &'static str,
    /// A repository of the Hugging Face hub.
    pub hub: Option<&'static str>,
    /// Combines rows of several tables.
    pub join: fn(Vec<Located>) -> anyhow::Result<Vec<Located>>,
    /// Reads a question; `None` if its answer is not published.
    pub sample: fn(&Row) -> anyhow::Result<Option<Sample>>,
    /// Combines rows about one medium into one sample.
    pub merge: fn(Samples) -> anyhow::Result<Samples>,
}

/// A row and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub table: usize,
    pub number: usize,
    pub row: Row,
}

/// Questions with the places of their rows.
pub type Samples = Vec<(Located, Sample)>;

impl Dataset {
    /// Returns the layout; `None` for the generated dataset.
    pub fn layout(self) -> Option<&'static Layout> {
        match self {
            Self::VideoMme => Some(&video_mme::LAYOUT),
            Self::ActivitynetQa => Some(&activitynet_qa::LAYOUT),
            Self::Audiocaps => Some(&audiocaps::LAYOUT),
            Self::Mmbench => Some(&mmbench::LAYOUT),
            Self::Docvqa => Some(&docvqa::LAYOUT),
            Self::Textvqa => Some(&textvqa::LAYOUT),
            Self::Synthetic => None,
        }
    }
}

/// Leaves the rows as they are.
fn no_join(rows: Vec<Located>) -> anyhow::Result<Vec<Located>> {
    Ok(rows)
}

/// Checks that no question occurs twice.
fn distinct(samples: Samples) -> anyhow::Result<Samples> {
    let mut seen = HashMap::new();
    for (index, (_, sample)) in samples.iter().enumerate() {
        let before = seen.insert(sample.id.as_str(), index);
        ensure!(
            before.is_none(),
            "the question {} occurs twice; expected one split of the dataset",
            sample.id
        );
    }
    Ok(samples)
}

/// Returns the prompt of a multiple-choice question, as of LLaVA and lmms-eval.
fn multiple_choice(question: &str, choices: &[String]) -> String {
    let options = choices.iter().zip('A'..='Z');
    let options: String = options
        .map(|(choice, letter)| format!("{letter}. {choice}\n"))
        .collect();
    format!("{question}\n{options}Answer with the option's letter from the given choices directly.")
}

/// Returns the prompt of a question with a short answer, as of LLaVA and lmms-eval.
fn short_answer(question: &str) -> String {
    format!("{question}\nAnswer the question using a single word or phrase.")
}
