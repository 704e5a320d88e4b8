//! Conversations for an observer of the weights' inputs.

use std::ops::ControlFlow;

use edge_lmm_models::language::{OutputRows, StepInput};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_ops::KernelBackend;

use super::prepare::Prepared;
use super::state::Session;
use crate::error::EngineError;
use crate::request::{Event, Request};

impl<B: KernelBackend> Session<B> {
    /// Computes a request and its answer for the observer or supplier of this thread
    /// ([`observe`](edge_lmm_ops::observe)); the conversation is forgotten. A decoder-only model
    /// computes all tokens in one step, so that it uses every weight of the language model once.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill) and [`step`](Self::step).
    pub fn observe(&mut self, request: &Request<'_>, answer: &[u32]) -> Result<(), EngineError> {
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        self.past = None;
        let mut prepared = self.shared.prepare(request, &[], &mut go_on)?;
        let (language, prompt) = (self.shared.model.language(), &mut prepared.prompt);
        if language.decoder_tokens(&prompt.ids) == prompt.ids {
            let room = language.context_length().saturating_sub(prompt.ids.len());
            let answer = &answer[..answer.len().min(room)];
            prompt.push_text(answer);
            return self.observe_prepared(&prepared, request, answer.len() + 1);
        }
        self.prefill(request, go_on)?;
        if !answer.is_empty() {
            self.step(answer, OutputRows::All)?;
        }
        self.past = None;
        Ok(())
    }

    /// Runs the language model over a whole prompt, of which the last `scored` tokens are scored.
    fn observe_prepared(
        &self,
        prepared: &Prepared<B>,
        request: &Request<'_>,
        scored: usize,
    ) -> Result<(), EngineError> {
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
        language.logits(hidden.narrow(0, rows - scored, scored));
        Ok(())
    }
}
