//! Answers of records to a question set.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::{Cpu, Engine, EngineError, Logits, Media, Request, Session, user_message};
use edge_lmm_record::Record;

use super::divergence::{Distribution, Divergence};
use super::report::Answers;
use super::run::CompareError;

/// Largest number of tokens of an answer.
const MAX_TOKENS: usize = 128;

/// Most tokens of an answer whose predictions are compared, which limits the memory of the scores.
const SCORED: usize = 32;

/// Answers the questions of `manifest` with every record, greedily, and scores the answers by the
/// metric of each question. The first record is the reference: the others also predict the tokens
/// of its answers. `progress` receives the number of answers so far.
///
/// # Errors
/// If a medium cannot be read, or a model cannot answer a question.
pub fn answer<'a>(
    records: impl Iterator<Item = &'a Record>,
    manifest: &Manifest,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Answers>, CompareError> {
    let mut models: Vec<Model> = Vec::new();
    for record in records {
        let engine = Engine::<Cpu>::load(record, Default::default())?;
        let vocabulary = (record.tokenizer(), engine.vocabulary());
        models.push(Model {
            session: engine.session(),
            vocabulary,
            is_scored: (models.first()).is_none_or(|first| first.vocabulary == vocabulary),
            right: 0.0,
            same: 0,
            stages_ms: BTreeMap::new(),
            divergences: Vec::new(),
        });
    }
    let mut done = 0;
    for question in &manifest.questions {
        let asked = |error: &(dyn std::error::Error + 'static)| CompareError::Question {
            id: question.id.clone(),
            reason: edge_lmm::one_line(error),
        };
        let media: Vec<Media> = (manifest.media_path(question).into_iter())
            .map(Media::open)
            .collect::<Result<_, _>>()
            .map_err(|error| asked(&error))?;
        let mut reference: Option<Reference> = None;
        for model in &mut models {
            progress(done);
            done += 1;
            let compared = model.add(question, &media, reference.as_ref());
            let own = compared.map_err(|error| asked(&error))?;
            reference = reference.or(own);
        }
    }
    let questions = manifest.questions.len() as f64;
    let models = models.into_iter().enumerate();
    Ok(models
        .map(|(index, model)| model.report(questions, index > 0))
        .collect())
}

/// A model and what its answers so far were like.
struct Model<'a> {
    session: Session<Cpu>,
    /// The tokenizer and the number of token ids.
    vocabulary: (&'a str, usize),
    /// The model has the vocabulary of the reference.
    is_scored: bool,
    right: f64,
    /// Number of answers that are those of the reference.
    same: usize,
    stages_ms: BTreeMap<String, f64>,
    /// For each question, the divergence at each token.
    divergences: Vec<Vec<f64>>,
}

/// The answer of the reference to a question.
struct Reference {
    text: String,
    tokens: Vec<u32>,
    scores: Logits,
}

impl Model<'_> {
    /// Answers a question and compares the answer with that of the reference. Without one, this model
    /// is the reference, and its answer is returned.
    fn add(
        &mut self,
        question: &Question,
        media: &[Media],
        reference: Option<&Reference>,
    ) -> Result<Option<Reference>, EngineError> {
        let messages = [user_message(media, &question.question)];
        let request = Request {
            media,
            max_tokens: MAX_TOKENS,
            timing: true,
            ..Request::new(&messages)
        };
        // Every question is computed from the start, so that times do not depend on the order.
        self.session.forget();
        let answer = (self.session).answer(&request, |_| ControlFlow::Continue(()))?;
        self.right += question.score(&answer.text, None);
        let stages = answer.timing.stages().iter();
        for stage in stages.filter(|stage| stage.name == stage.stage) {
            let ms = self.stages_ms.entry(stage.name.clone()).or_default();
            *ms += 1e3 * stage.time.as_secs_f64();
        }
        let text = answer.text.trim().to_owned();
        let Some(reference) = reference else {
            let mut tokens = answer.tokens;
            tokens.truncate(SCORED);
            // The last token is only predicted.
            tokens.pop();
            let scores = self.session.score(&request, &tokens)?;
            return Ok(Some(Reference {
                text,
                tokens,
                scores,
            }));
        };
        self.same += usize::from(text == reference.text);
        if self.is_scored {
            let scores = self.session.score(&request, &reference.tokens)?;
            self.divergences
                .push(divergences(&reference.scores, &scores));
        }
        Ok(None)
    }

    fn report(self, questions: f64, is_candidate: bool) -> Answers {
        let is_compared = is_candidate && self.is_scored;
        Answers {
            right: self.right,
            accuracy: self.right / questions,
            agreement: is_candidate.then_some(self.same as f64 / questions),
            divergence: is_compared.then(|| Divergence::of(&self.divergences)),
            stages_ms: (self.stages_ms.into_iter())
                .map(|(stage, ms)| (stage, ms / questions))
                .collect(),
        }
    }
}

/// Returns the divergences of the rows of `candidate` from those of `reference`.
fn divergences(reference: &Logits, candidate: &Logits) -> Vec<f64> {
    let rows = 0..reference.rows().min(candidate.rows());
    let divergence = |row| {
        let candidate = Distribution::new(candidate.row(row));
        let expected = Distribution::new(reference.row(row));
        expected.predict(&candidate, 0).divergence
    };
    rows.map(divergence).collect()
}
