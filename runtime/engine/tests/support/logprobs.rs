//! Answers with the log-probabilities of their tokens.

use std::ops::ControlFlow;

use edge_lmm::{Answer, Cpu, Event, Request, Session, TokenLogprobs};

/// Answers a request and returns the log-probabilities of all tokens as well, with those of the two
/// most likely ones.
pub fn answer(session: &mut Session<Cpu>, request: &Request<'_>) -> (Answer, Vec<TokenLogprobs>) {
    let request = Request {
        logprobs: Some(2),
        ..request.clone()
    };
    let mut logprobs = Vec::new();
    let answer = session.answer(&request, |event| {
        if let Event::Logprobs(token) = event {
            logprobs.push(token.clone());
        }
        ControlFlow::Continue(())
    });
    (answer.expect("an answer"), logprobs)
}
