//! Answers of records to a question set.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::{Cpu, Engine, Media, Request, Session, user_message};
use edge_lmm_record::Record;

use super::report::Answers;
use super::run::CompareError;

/// Largest number of tokens of an answer.
const MAX_TOKENS: usize = 128;

/// Answers the questions of `manifest` with every record, greedily, and scores the answers by the
/// metric of each question. The first record is the reference. `progress` receives the number of
/// answers so far.
///
/// # Errors
/// If a medium cannot be read, or a model cannot answer a question.
pub fn answer<'a>(
    records: impl Iterator<Item = &'a Record>,
    manifest: &Manifest,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Answers>, CompareError> {
    let mut texts: Vec<Vec<String>> = Vec::new();
    let mut done = 0;
    let mut all = Vec::new();
    for record in records {
        let mut session = Engine::<Cpu>::load(record, Default::default())?.session();
        let mut answers = Run::default();
        for question in &manifest.questions {
            progress(done);
            answers.add(&mut session, manifest, question)?;
            done += 1;
        }
        let questions = manifest.questions.len() as f64;
        let agreement = texts.first().map(|reference| {
            let same = reference.iter().zip(&answers.texts).filter(|(a, b)| a == b);
            same.count() as f64 / questions
        });
        all.push(Answers {
            right: answers.right,
            accuracy: answers.right / questions,
            agreement,
            stages_ms: (answers.stages_ms.into_iter())
                .map(|(stage, ms)| (stage, ms / questions))
                .collect(),
        });
        texts.push(answers.texts);
    }
    Ok(all)
}

/// The answers of one record.
#[derive(Default)]
struct Run {
    right: f64,
    texts: Vec<String>,
    stages_ms: BTreeMap<String, f64>,
}

impl Run {
    fn add(
        &mut self,
        session: &mut Session<Cpu>,
        manifest: &Manifest,
        question: &Question,
    ) -> Result<(), CompareError> {
        let asked = |reason: String| CompareError::Question {
            id: question.id.clone(),
            reason,
        };
        let media: Vec<Media> = (manifest.media_path(question).into_iter())
            .map(Media::open)
            .collect::<Result<_, _>>()
            .map_err(|error| asked(edge_lmm::one_line(&error)))?;
        let messages = [user_message(&media, &question.question)];
        let request = Request {
            media: &media,
            max_tokens: MAX_TOKENS,
            timing: true,
            ..Request::new(&messages)
        };
        // Every question is computed from the start, so that times do not depend on the order.
        session.forget();
        let answer = session
            .answer(&request, |_| ControlFlow::Continue(()))
            .map_err(|error| asked(edge_lmm::one_line(&error)))?;
        self.right += question.score(&answer.text, None);
        self.texts.push(answer.text.trim().to_owned());
        let stages = answer.timing.stages().iter();
        for stage in stages.filter(|stage| stage.name == stage.stage) {
            let ms = self.stages_ms.entry(stage.name.clone()).or_default();
            *ms += 1e3 * stage.time.as_secs_f64();
        }
        Ok(())
    }
}
