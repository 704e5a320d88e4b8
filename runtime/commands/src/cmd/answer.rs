//! Answers on a terminal: streamed text, progress, and a cost check before work starts.

use std::ops::ControlFlow;

use edge_lmm::{Answer, AnySession, EngineError, Event, Request};

use super::memory::RequestCheck;
use super::options::print_now;
use super::progress::AnswerProgress;

/// Answers a request, streaming its text to standard output if `stream` is set.
///
/// # Errors
/// If the request does not fit into memory, cannot be answered, or standard output fails.
pub fn answer(
    session: &mut AnySession,
    request: &Request<'_>,
    check: &RequestCheck,
    stream: bool,
) -> anyhow::Result<Answer> {
    answer_until(session, request, check, stream, || false)
}

/// Answers like [`answer`], canceled when `canceled` returns `true`.
///
/// # Errors
/// As [`answer`].
pub fn answer_until(
    session: &mut AnySession,
    request: &Request<'_>,
    check: &RequestCheck,
    stream: bool,
    canceled: impl Fn() -> bool,
) -> anyhow::Result<Answer> {
    let mut progress = AnswerProgress::new();
    let mut failed = Ok(());
    let answer = session.answer(request, |event| {
        progress.show(&event);
        let outcome = match event {
            Event::Prepared {
                prompt_tokens,
                media,
            } => check.run(request, prompt_tokens, media, |note| progress.note(note)),
            Event::Text(text) if stream => print_now(text),
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            failed = Err(error);
            return ControlFlow::Break(());
        }
        match canceled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    failed?;
    answer.map_err(EngineError::into)
}
