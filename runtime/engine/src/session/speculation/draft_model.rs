//! Drafts from a second, smaller model.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use edge_lmm_models::language::{OutputRows, PREFILL_CHUNK};
use edge_lmm_ops::{KernelBackend, argmax};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::session::Session;
use crate::session::past::Past;

/// A model that drafts the tokens of another one, with its own state of the conversation.
///
/// It reads the text of the conversation only: tokens of media are left out.
pub struct DraftModel<B: KernelBackend>(Session<B>);

impl<B: KernelBackend> DraftModel<B> {
    pub fn new(engine: &Engine<B>) -> Self {
        Self(engine.session())
    }

    /// Returns the most likely `count` tokens after `text`, fewer if the context of the draft model
    /// ends.
    ///
    /// # Errors
    /// If the device fails or its memory does not suffice.
    pub fn draft(&mut self, text: &[u32], count: usize) -> Result<Vec<u32>, EngineError> {
        let Self(session) = self;
        let vocabulary = session.vocabulary();
        let known = |&id: &u32| (id as usize) < vocabulary;
        let room = session.context_length().saturating_sub(text.len());
        let count = count.min(room);
        if count == 0 || text.is_empty() || !text.iter().all(known) {
            return Ok(Vec::new());
        }
        let mut logits = self.follow(text, text.len() + count)?;
        let mut draft = Vec::with_capacity(count);
        loop {
            let id = argmax(logits).map_err(|error| EngineError::Compute(error.to_string()))?;
            draft.extend(id);
            if draft.len() == count || id.is_none() {
                return Ok(draft);
            }
            logits = self.advance(&draft[draft.len() - 1..])?;
        }
    }

    /// Brings the state to the end of `text` and returns the scores of the next token. Makes room
    /// for `needed` tokens in all.
    fn follow(&mut self, text: &[u32], needed: usize) -> Result<Tensor<B, 2>, EngineError> {
        let Self(session) = self;
        if session.past.is_none() {
            session.past = Some(Past::new(session.new_state(needed)?));
        }
        session.reserve(needed)?;
        let past = session.past.as_mut().expect("the state was made");
        let pairs = past.tokens.iter().zip(text);
        let common = pairs.take_while(|(past, id)| past.id == **id).count();
        // The last token is computed for its scores.
        let common = common.min(text.len() - 1);
        past.truncate(common)?;
        let mut chunks = text[common..].chunks(PREFILL_CHUNK);
        let first = chunks.next().expect("at least one token");
        let mut logits = self.advance(first)?;
        for chunk in chunks {
            logits = self.advance(chunk)?;
        }
        Ok(logits)
    }

    fn advance(&mut self, ids: &[u32]) -> Result<Tensor<B, 2>, EngineError> {
        let mut go_on = |_: crate::Event<'_>| ControlFlow::Continue(());
        self.0.advance(ids, OutputRows::Last, &mut go_on)
    }
}
