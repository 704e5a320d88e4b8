//! Scores of a given answer.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use edge_lmm_models::language::{OutputRows, StepInput};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_ops::KernelBackend;

use super::prepare::Prepared;
use super::state::{Logits, Session};
use crate::error::EngineError;
use crate::request::{Event, Request};

impl<B: KernelBackend> Session<B> {
    /// Returns the scores of the tokens of `answer` after a request, each given the tokens before it,
    /// and of the token that follows the answer: `answer.len() + 1` rows, or fewer if the context has
    /// no room for the whole answer. The conversation is forgotten.
    ///
    /// A decoder-only model computes all tokens in one step, so that an observer or supplier of this
    /// thread ([`observe`](edge_lmm_ops::observe)) sees every weight of the language model once.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill) and [`step`](Self::step).
    pub fn score(&mut self, request: &Request<'_>, answer: &[u32]) -> Result<Logits, EngineError> {
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        self.past = None;
        let mut prepared = self.shared.prepare(request, &[], &mut go_on)?;
        let (language, prompt) = (self.shared.model.language(), &mut prepared.prompt);
        if language.decoder_tokens(&prompt.ids) == prompt.ids {
            let room = language.context_length().saturating_sub(prompt.ids.len());
            let answer = &answer[..answer.len().min(room)];
            prompt.push_text(answer);
            let scores = self.score_prepared(&prepared, request, answer.len() + 1)?;
            return self.read(scores);
        }
        let first = self.prefill(request, go_on)?.logits;
        let scores = match answer {
            [] => first,
            answer => first.followed_by(self.step(answer, OutputRows::All)?),
        };
        self.past = None;
        Ok(scores)
    }

    /// Runs the language model over a whole prompt, of which the last `scored` tokens are scored.
    fn score_prepared(
        &self,
        prepared: &Prepared<B>,
        request: &Request<'_>,
        scored: usize,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let language = self.shared.model.language();
        let mut state = self.new_state(prepared.prompt.ids.len())?;
        state.long = language.is_long(prepared.prompt.ids.len());
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        let input = self.shared.embed(prepared, 0, None, request, &mut go_on)?;
        let input = StepInput {
            output: OutputRows::All,
            ..input
        };
        let mut go_on = |_| ControlFlow::Continue(());
        let hidden = language.step(input, &mut state, &mut Monitor::new(&mut go_on))?;
        let [rows, _] = hidden.dims();
        Ok(language.logits(hidden.narrow(0, rows - scored, scored)))
    }
}
