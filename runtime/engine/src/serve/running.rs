//! Requests while they are answered.

use std::ops::ControlFlow;
use std::time::Duration;

use super::{Limits, Prepared};
use crate::request_estimate::RequestEstimator;
use crate::{Answer, AnyGeneration, AnySession, EngineError, Event, Request, Token};

/// A request whose prompt has been taken in and whose answer is decoded, together with those of
/// others.
///
/// It has a conversation of its own, which returns to those that the session keeps at the end.
pub struct Running {
    generation: AnyGeneration,
    /// Largest number of tokens, and tokens so far.
    max_tokens: usize,
    done: usize,
    /// Time in which the media were decoded, and their number.
    decoding: Duration,
    media: usize,
}

impl Prepared {
    /// Encodes the media of the request and takes its prompt in. With an `estimator`, a request that
    /// does not fit into memory is rejected before anything is encoded; `reserved` are bytes that
    /// other requests may still take. `on_event` receives every event and cancels the work by
    /// breaking, for clients that have disconnected. The request may be dropped afterwards.
    ///
    /// # Errors
    /// As [`Session::answer`](crate::Session::answer), and [`EngineError::DoesNotFit`].
    pub fn begin(
        &self,
        session: &mut AnySession,
        limits: &Limits,
        estimator: Option<&RequestEstimator>,
        reserved: u64,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Running, EngineError> {
        let request = self.request(limits);
        let memory = estimator.map(|estimator| (estimator, reserved));
        let mut begun = try_begin(session, &request, memory, &mut on_event);
        // The memory may be that of other conversations.
        if let Err(EngineError::DoesNotFit(_)) = begun
            && session.forget_others()
        {
            begun = try_begin(session, &request, memory, &mut on_event);
        }
        Ok(Running {
            generation: begun?,
            max_tokens: request.max_tokens,
            done: 0,
            decoding: self.decoding,
            media: self.media.len(),
        })
    }

    /// Answers the request from its beginning to its end, as [`begin`](Self::begin) and steps of
    /// this request alone do. The stages of the answer begin with `media`.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn answer(
        &self,
        session: &mut AnySession,
        limits: &Limits,
        estimator: Option<&RequestEstimator>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let mut running = self.begin(session, limits, estimator, 0, &mut on_event)?;
        while let Some(token) = Running::next_together([&mut running]).pop().flatten() {
            match token {
                Ok(token) => {
                    if running.report(&token, &mut on_event).is_break() {
                        break;
                    }
                }
                Err(error) => return Err(running.fail(error)),
            }
        }
        running.finish(on_event)
    }
}

impl Running {
    /// Computes the next token of each of the answers in one step, which reads the weights once;
    /// `None` if an answer has ended.
    pub fn next_together<'a>(
        running: impl IntoIterator<Item = &'a mut Self>,
    ) -> Vec<Option<Result<Token, EngineError>>> {
        let answers = running.into_iter();
        AnyGeneration::next_together(answers.map(|running| &mut running.generation))
    }

    /// Returns `true` if no token follows: the answer has ended by itself, or failed.
    pub fn has_ended(&self) -> bool {
        self.generation.has_ended()
    }

    /// Returns the bytes of memory that the answer may still take.
    pub fn reserved_bytes(&self) -> u64 {
        self.generation.reserved_bytes() as u64
    }

    /// Reports the events of the next token. Breaks if `on_event` does.
    pub fn report(
        &mut self,
        token: &Token,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.done += 1;
        token.report(self.done, self.max_tokens, on_event)
    }

    /// Ends the answer, as it is so far, and reports the rest of its text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(
        self,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let (mut answer, rest) = self.generation.finish()?;
        if !rest.is_empty() {
            // Nothing more can be canceled.
            let _ = on_event(Event::Text(&rest));
        }
        if self.media > 0 {
            answer.timing.prepend("media", self.decoding, self.media);
        }
        Ok(answer)
    }

    /// Ends the answer after an error of its last step, and returns the error.
    #[must_use]
    pub fn fail(self, error: EngineError) -> EngineError {
        self.generation.fail(error)
    }
}

/// Begins an answer unless the estimator finds that it does not fit into memory in which a number of
/// bytes is reserved.
fn try_begin(
    session: &mut AnySession,
    request: &Request<'_>,
    memory: Option<(&RequestEstimator, u64)>,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<AnyGeneration, EngineError> {
    let mut fits = Ok(());
    let begun = session.begin(request, |event| {
        if let (
            Some((estimator, reserved)),
            Event::Prepared {
                prompt_tokens,
                media,
            },
        ) = (memory, &event)
        {
            let mut estimate = estimator.estimate(request, media, *prompt_tokens);
            let cache = &mut estimate.memory.cache;
            *cache = cache.saturating_add(reserved);
            fits = estimator.check(&estimate);
            if fits.is_err() {
                return ControlFlow::Break(());
            }
        }
        on_event(event)
    });
    fits?;
    begun
}
