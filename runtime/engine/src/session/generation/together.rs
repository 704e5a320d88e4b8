//! Decoding of several answers with one step for all.

use std::sync::Arc;

use edge_lmm_models::ModelError;
use edge_lmm_ops::{KernelBackend, stage};

use super::{Generation, Token};
use crate::error::EngineError;
use crate::session::speculation::{Scores, Steps};
use crate::timing::Recording;

impl<B: KernelBackend> Generation<'_, B> {
    /// Returns what [`next`](Iterator::next) returns for each of the answers, but computes their
    /// tokens in one step, which reads the weights once. The answers are bitwise those of single
    /// steps on CPUs; on GPUs, products of several tokens may round differently.
    ///
    /// An answer takes a step of its own if its engine is not that of the first answer, and where it
    /// becomes long for LongRoPE. Its first token comes from the prompt without a step. No tokens are
    /// [drafted](crate::Request::speculation) unless there is only one answer left; those that were
    /// drafted before are verified first. Models with recurrent layers and encoder-decoders continue
    /// the answers in turn and compute only the output head together. The stage `decode` of every
    /// answer has the time of the whole common step.
    ///
    /// ```
    /// # use edge_lmm::{Cpu, Engine, Generation, Message, Record, Request, Role, demo};
    /// # use std::ops::ControlFlow;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = Engine::<Cpu>::load(&Record::from_static(demo::RECORD, "demo")?, Default::default())?;
    /// let questions = ["what is a circle?", "list the shapes."];
    /// let mut sessions = questions.map(|_| engine.session());
    /// let mut answers = Vec::new();
    /// for (session, question) in sessions.iter_mut().zip(questions) {
    ///     let messages = [Message::text(Role::User, question)];
    ///     let go_on = |_: edge_lmm::Event<'_>| ControlFlow::Continue(());
    ///     answers.push(session.generate(&Request::new(&messages), Vec::new(), go_on)?);
    /// }
    /// while Generation::next_together(&mut answers).iter().any(Option::is_some) {}
    /// for answer in answers {
    ///     println!("{}", answer.finish()?.0.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_together<'a>(
        answers: impl IntoIterator<Item = &'a mut Self>,
    ) -> Vec<Option<Result<Token, EngineError>>>
    where
        Self: 'a,
    {
        let mut answers: Vec<&mut Self> = answers.into_iter().collect();
        let left = answers.iter().filter(|answer| !answer.ended).count();
        for answer in &mut answers {
            answer.steps.set_drafts(left < 2);
        }
        let first = answers.iter().find(|answer| answer.can_join());
        let model = first.map(|answer| answer.steps.session.shared.clone());
        let joins = |answer: &&mut Self| {
            let shared = &answer.steps.session.shared;
            answer.can_join()
                && model
                    .as_ref()
                    .is_some_and(|model| Arc::ptr_eq(model, shared))
        };
        let joined: Vec<bool> = answers.iter().map(joins).collect();
        if joined.iter().filter(|&&joins| joins).count() < 2 {
            return answers.into_iter().map(Iterator::next).collect();
        }
        let together = answers.iter_mut().zip(&joined);
        let together = together.filter_map(|(answer, joins)| joins.then_some(&mut **answer));
        let mut tokens = Self::advance_together(&mut together.collect::<Vec<_>>()).into_iter();
        let of_each = answers.into_iter().zip(joined);
        let of_each = of_each.map(|(answer, joins)| match joins {
            true => tokens.next(),
            false => answer.next(),
        });
        of_each.collect()
    }

    fn can_join(&self) -> bool {
        !self.ended && self.logits.is_none() && self.steps.can_join()
    }

    /// Computes the next token of answers that can join a common step, at least one. All recordings
    /// measure the whole step.
    fn advance_together(answers: &mut [&mut Self]) -> Vec<Result<Token, EngineError>> {
        let recordings = answers.iter_mut().map(|answer| answer.recording.take());
        let mut recordings: Vec<Option<Recording>> = recordings.collect();
        let entered: Vec<_> = recordings
            .iter_mut()
            .flatten()
            .map(Recording::enter)
            .collect();
        let tokens = Self::step_together(answers);
        drop(entered);
        for ((answer, recording), token) in answers.iter_mut().zip(recordings).zip(&tokens) {
            answer.recording = recording;
            answer.ended |= token.is_err();
        }
        tokens
    }

    fn step_together(answers: &mut [&mut Self]) -> Vec<Result<Token, EngineError>> {
        let _stage = stage::top("decode");
        let model = answers[0].steps.session.shared.clone();
        let mut steps: Vec<_> = answers.iter_mut().map(|answer| &mut answer.steps).collect();
        let scores = Steps::scores_together(&model, &mut steps);
        // The rows are read together: a row of a shared tensor would be copied element by element.
        let scores = match scores
            .map_err(EngineError::from)
            .and_then(|scores| steps[0].session.read(scores))
        {
            Ok(scores) => Arc::new(scores),
            Err(error) => {
                let reason = match error {
                    EngineError::Compute(reason)
                    | EngineError::Model(ModelError::Compute(reason)) => reason,
                    error => error.to_string(),
                };
                let failed = |steps: &mut Steps<'_, B>| {
                    let error = EngineError::Compute(reason.clone());
                    Err(steps.session.after(error))
                };
                return steps.into_iter().map(failed).collect();
            }
        };
        let rows = answers.iter_mut().enumerate();
        let rows = rows.map(|(row, answer)| answer.append(Scores::Row(scores.clone(), row)));
        rows.collect()
    }
}
