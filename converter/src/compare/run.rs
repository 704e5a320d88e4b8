//! Runs the reference and the candidates over the windows of a text.

use std::path::PathBuf;
use std::sync::Mutex;

use edge_lmm_kernels::pool;
use edge_lmm_models::ModelError;
use edge_lmm_record::RecordError;

use super::divergence::{Distribution, Divergence, Prediction};
use super::report::Predictions;
use super::scorer::Scorer;
use super::windows::{Windows, WindowsError};

/// Scores of a model that are in memory at once.
const SCORES: usize = 1 << 23;

/// The error of a comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The text cannot be read.
    #[error(transparent)]
    Windows(#[from] WindowsError),
    /// A model cannot compute the text.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model cannot be loaded.
    #[error(transparent)]
    Engine(#[from] edge_lmm::EngineError),
    /// A question cannot be answered.
    #[error("question {id}: {reason}")]
    Question {
        /// Name of the question.
        id: String,
        /// Why.
        reason: String,
    },
    /// A model that does not continue texts.
    #[error(
        "{path} has an encoder of texts or recurrent layers, expected a decoder-only model: its \
         predictions of a text cannot be compared, use --manifest"
    )]
    NoDecoder {
        /// The record.
        path: PathBuf,
    },
    /// Models of different vocabularies.
    #[error(
        "{path} has another tokenizer or vocabulary than the reference: expected records of the \
         same model"
    )]
    Tokenizer {
        /// The record.
        path: PathBuf,
    },
    /// A window exceeds the context.
    #[error("{path} has a context of {context} tokens, expected at least the {window} of a window")]
    Context {
        /// The record.
        path: PathBuf,
        /// Context length.
        context: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// An id beyond the vocabulary.
    #[error("the text has the token id {id}, expected one below {vocabulary}")]
    Id {
        /// The id.
        id: u32,
        /// Number of ids.
        vocabulary: usize,
    },
}

/// Sums over the positions of a model.
#[derive(Default)]
struct Sums {
    surprise: f64,
    agreements: usize,
    /// For each window, the divergence of each position.
    divergences: Vec<Vec<f64>>,
}

/// Compares the predictions of `models`, the first of which is the reference, at the positions of a
/// text. `progress` receives the number of windows that are done.
///
/// # Errors
/// If the models do not belong together, or the text does not fit them.
pub fn predict(
    models: &mut [Scorer],
    windows: &Windows,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Predictions>, CompareError> {
    check(models, windows)?;
    let mut sums: Vec<Sums> = models.iter().map(|_| Sums::default()).collect();
    for (done, ids) in windows.rows().iter().enumerate() {
        progress(done);
        add_window(models, ids, &mut sums)?;
    }
    let reports = models.iter().zip(&sums).enumerate();
    Ok(reports
        .map(|(index, (model, sums))| sums.report(model, index > 0))
        .collect())
}

fn check(models: &[Scorer], windows: &Windows) -> Result<(), CompareError> {
    let Some((reference, candidates)) = models.split_first() else {
        return Ok(());
    };
    if let Some(model) = models.iter().find(|model| !model.continues_texts()) {
        return Err(CompareError::NoDecoder {
            path: model.record().path().to_owned(),
        });
    }
    let vocabulary = reference.vocabulary();
    for candidate in candidates {
        let same = candidate.record().tokenizer() == reference.record().tokenizer();
        if !same || candidate.vocabulary() != vocabulary {
            return Err(CompareError::Tokenizer {
                path: candidate.record().path().to_owned(),
            });
        }
    }
    let window = windows.window();
    if let Some(model) = models.iter().find(|model| model.context_length() < window) {
        return Err(CompareError::Context {
            path: model.record().path().to_owned(),
            context: model.context_length(),
            window,
        });
    }
    let mut ids = windows.rows().iter().flatten();
    match ids.find(|&&id| id as usize >= vocabulary) {
        Some(&id) => Err(CompareError::Id { id, vocabulary }),
        None => Ok(()),
    }
}

/// Scores the second half of a window with all models.
fn add_window(models: &mut [Scorer], ids: &[u32], sums: &mut [Sums]) -> Result<(), CompareError> {
    let scored = ids.len() / 2..ids.len() - 1;
    let vocabulary = models[0].vocabulary();
    let hidden = (models.iter_mut())
        .map(|model| model.hidden(ids, scored.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    sums.iter_mut()
        .for_each(|sums| sums.divergences.push(Vec::new()));
    let chunk = (SCORES / vocabulary).max(1);
    for first in (0..scored.len()).step_by(chunk) {
        let rows = first..(first + chunk).min(scored.len());
        let next = &ids[scored.start + 1..][rows.clone()];
        let reference = models[0].scores(&hidden[0], rows.clone());
        let reference: Vec<_> = in_parallel(rows.len(), |row| {
            Distribution::new(&reference[row * vocabulary..][..vocabulary])
        });
        for (index, sums) in sums.iter_mut().enumerate() {
            if index == 0 {
                let itself = |row: usize| Prediction {
                    divergence: 0.0,
                    surprise: reference[row].surprise(next[row]),
                    agrees: true,
                };
                sums.add((0..rows.len()).map(itself));
                continue;
            }
            let scores = models[index].scores(&hidden[index], rows.clone());
            let predictions = in_parallel(rows.len(), |row| {
                let candidate = Distribution::new(&scores[row * vocabulary..][..vocabulary]);
                reference[row].predict(&candidate, next[row])
            });
            sums.add(predictions.into_iter());
        }
    }
    Ok(())
}

/// Computes a value for each row, on all threads.
fn in_parallel<T: Send>(rows: usize, value: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let slots: Vec<Mutex<Option<T>>> = (0..rows).map(|_| Mutex::new(None)).collect();
    pool::global().run(rows, |row| {
        let value = value(row);
        *slots[row].lock().expect("no task panics with the lock") = Some(value);
    });
    let filled = slots.into_iter().map(|slot| slot.into_inner());
    filled
        .map(|slot| slot.expect("no task panics with the lock"))
        .map(|value| value.expect("every task fills its slot"))
        .collect()
}

impl Sums {
    fn add(&mut self, predictions: impl Iterator<Item = Prediction>) {
        let window = self.divergences.last_mut().expect("a window has begun");
        for prediction in predictions {
            self.surprise += prediction.surprise;
            self.agreements += usize::from(prediction.agrees);
            window.push(prediction.divergence);
        }
    }

    fn report(&self, model: &Scorer, is_candidate: bool) -> Predictions {
        let positions = self.divergences.iter().map(Vec::len).sum::<usize>() as f64;
        let windows = self.divergences.len() as f64;
        let stages = model.times().into_iter();
        Predictions {
            perplexity: (self.surprise / positions).exp(),
            divergence: is_candidate.then(|| Divergence::of(&self.divergences)),
            top1: is_candidate.then_some(self.agreements as f64 / positions),
            stages_ms: stages
                .map(|(stage, time)| (stage.to_owned(), 1e3 * time.as_secs_f64() / windows))
                .collect(),
        }
    }
}
