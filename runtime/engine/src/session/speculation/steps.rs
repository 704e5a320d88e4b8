//! Steps of the model over picked and drafted tokens.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::language::{Checkpoint, OutputRows, StepInput};
use edge_lmm_models::mtp::MtpState;
use edge_lmm_ops::{KernelBackend, KvStore, probe, stage};

use super::lookup::Match;
use super::pace::Source;
use super::{DraftModel, Speculation, SpeculationCounts};
use crate::error::EngineError;
use crate::loaded::LoadedModel;
use crate::request::Event;
use crate::session::held::Held;
use crate::session::past::Past;
use crate::session::{Logits, Session};

/// A session that decodes an answer.
///
/// [`scores`](Self::scores) gives the scores of the next token, and [`accept`](Self::accept) takes
/// the token that was picked from them. Dropping the steps leaves the session with tokens of the
/// answer only.
pub struct Steps<'s, B: KernelBackend> {
    pub session: Held<'s, B>,
    speculation: Speculation,
    /// `false` while other answers are decoded with this one: a step for all of them gains more
    /// than drafts.
    drafts: bool,
    /// Picked tokens that are not in the state yet.
    pending: Vec<u32>,
    draft: Option<Draft>,
    /// Tokens of the last step and its start, until its scores were read: a device may still be
    /// computing when a step returns.
    timed: Option<(usize, Instant)>,
    counts: SpeculationCounts,
}

/// Scores of the next token.
pub enum Scores<B: KernelBackend> {
    /// `[1, vocabulary]`, on the device.
    Device(Tensor<B, 2>),
    /// A row of scores that were read together.
    Row(Arc<Logits>, usize),
}

/// Drafted tokens that are in the state.
struct Draft {
    source: Source,
    tokens: Vec<u32>,
    /// Number of tokens that were picked.
    accepted: usize,
    /// Scores after the last picked token and after each drafted one.
    scores: Arc<Logits>,
    /// The state before the step, and the picked tokens that the step took in.
    checkpoint: Checkpoint,
    picked: usize,
}

impl Draft {
    /// Returns the number of tokens in the state up to the last accepted one.
    fn len(&self) -> usize {
        self.checkpoint.tokens() + self.picked + self.accepted
    }
}

impl<'s, B: KernelBackend> Steps<'s, B> {
    pub fn new(session: Held<'s, B>, speculation: Speculation) -> Self {
        if speculation != Speculation::Off
            && let Some(engine) = session.shared.draft.get()
        {
            let new = || DraftModel::new(engine);
            session.drafting().model.get_or_insert_with(new);
        }
        Self {
            session,
            speculation,
            drafts: true,
            pending: Vec::new(),
            draft: None,
            timed: None,
            counts: SpeculationCounts::default(),
        }
    }

    /// Returns the steps and drafts so far; `None` without speculation.
    pub fn counts(&self) -> Option<SpeculationCounts> {
        (self.speculation != Speculation::Off).then_some(self.counts)
    }

    /// Turns drafts on or off. The tokens that are drafted already are verified in any case.
    pub fn set_drafts(&mut self, drafts: bool) {
        self.drafts = drafts;
    }

    /// Returns the scores of the next token. `tokens` are all tokens so far, of
    /// which the last one was picked. `left` tokens are still wanted, at least 1.
    pub fn scores(&mut self, tokens: &[u32], left: usize) -> Result<Scores<B>, EngineError> {
        if let Some(draft) = &self.draft {
            return Ok(Scores::Row(draft.scores.clone(), draft.accepted));
        }
        let (source, drafted) = self.propose(tokens, left - 1).unzip();
        let drafted: Vec<u32> = drafted.unwrap_or_default();
        self.counts.steps += 1;
        self.counts.drafted += drafted.len();
        self.timed = Some((self.pending.len() + drafted.len(), Instant::now()));
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        let Some(source) = source else {
            let picked = std::mem::take(&mut self.pending);
            let scores = self.session.advance(&picked, OutputRows::Last, &mut go_on);
            return scores.map(Scores::Device);
        };
        let past = self.session.past.as_ref().expect("there is a state");
        let checkpoint = past.state.checkpoint();
        let picked = std::mem::take(&mut self.pending);
        let ids = [&picked[..], &drafted].concat();
        let scores = self.session.verify(&ids)?;
        let scores = Arc::new(self.session.read(scores)?);
        self.draft = Some(Draft {
            source,
            tokens: drafted,
            accepted: 0,
            scores: scores.clone(),
            checkpoint,
            picked: picked.len(),
        });
        Ok(Scores::Row(scores, 0))
    }

    /// Returns `true` if the next step may be one for several conversations: there is no drafted
    /// token, it takes in the last picked token only, and the sequence does not become long.
    pub fn can_join(&self) -> bool {
        let Some(past) = &self.session.past else {
            return false;
        };
        let (state, len) = (&past.state, past.state.len() + self.pending.len());
        // A capture shows single steps.
        self.draft.is_none()
            && self.pending.len() == 1
            && len <= state.cache.capacity()
            && self.session.language().is_long(len) == state.long
            && !probe::active()
    }

    /// Computes the scores of the next token of several conversations with one model in one step:
    /// `[conversations, vocabulary]`. All of them [can join](Self::can_join) it.
    pub fn scores_together(
        shared: &LoadedModel<B>,
        conversations: &mut [&mut Self],
    ) -> Result<Tensor<B, 2>, ModelError> {
        let language = shared.model.language();
        let (mut ids, mut positions, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for steps in conversations {
            let past = steps.session.past.as_mut().expect("there is a state");
            positions.push([past.next_position(); 3]);
            past.push(&steps.pending);
            steps.counts.steps += 1;
            ids.append(&mut steps.pending);
            states.push(&mut past.state);
        }
        let input = StepInput::new(language.embed(&ids), &positions);
        let hidden = language.step_together(input, &mut states)?;
        Ok(language.logits(hidden))
    }

    /// Takes the token that was picked from the last scores.
    pub fn accept(&mut self, id: u32) {
        if let Some((tokens, start)) = self.timed.take() {
            let seconds = start.elapsed().as_secs_f64();
            self.session.drafting().pace.observe_step(tokens, seconds);
        }
        match &mut self.draft {
            Some(draft) if draft.tokens.get(draft.accepted) == Some(&id) => {
                draft.accepted += 1;
                self.counts.accepted += 1;
            }
            _ => {
                self.close(true);
                self.pending.push(id);
            }
        }
    }

    /// Returns `true` if the state has no room for the last picked token.
    pub fn is_full(&self) -> bool {
        let Some(past) = &self.session.past else {
            return true;
        };
        let len = match &self.draft {
            Some(draft) => draft.len(),
            None => past.state.len() + self.pending.len(),
        };
        len > past.state.cache.capacity()
    }

    /// Removes the drafted tokens that were not accepted from the state. `rejected` tells that
    /// the first of them, if there is one, differs from the token that was picked.
    fn close(&mut self, rejected: bool) {
        let Some(draft) = self.draft.take() else {
            return;
        };
        let (len, accepted) = (draft.len(), draft.accepted);
        let is_whole = accepted == draft.tokens.len();
        let verified = accepted + usize::from(rejected && !is_whole);
        self.session
            .drafting()
            .pace
            .observe_draft(draft.source, verified, accepted);
        let Some(past) = self.session.past.as_mut().filter(|_| !is_whole) else {
            return;
        };
        // Where a recurrent state cannot be revised, the tokens are computed again with the next ones.
        if !past.revise(&draft.checkpoint, len) {
            let first = draft.checkpoint.tokens();
            let known = &past.tokens[first..first + draft.picked];
            self.pending.extend(known.iter().map(|token| token.id));
            self.pending.extend(&draft.tokens[..accepted]);
            past.rewind(draft.checkpoint);
        }
    }

    /// Proposes up to `most` tokens, at least one, after `tokens`.
    fn propose(&mut self, tokens: &[u32], most: usize) -> Option<(Source, Vec<u32>)> {
        let most = self.most(most);
        if most == 0 {
            return None;
        }
        if let Some(found) = Match::find(tokens) {
            let source = Source::Lookup(found.len);
            let count = self.choose(source, most);
            if count > 0 {
                return Some((source, found.draft(tokens, count)));
            }
        }
        let has_model = self.session.drafting().model.is_some();
        let (source, drafted) = match has_model {
            true => (Source::Model, self.model_draft(most)),
            false => (Source::Mtp, self.mtp_draft(most)),
        };
        (!drafted.is_empty()).then_some((source, drafted))
    }

    /// Returns the number of tokens that may be drafted, at most `most`.
    fn most(&self, most: usize) -> usize {
        let most = most.min(self.speculation.most());
        // Tokens that a recurrent state has lost come first. A capture shows single steps.
        if most == 0 || !self.drafts || self.pending.len() != 1 || probe::active() {
            return 0;
        }
        let Some(past) = &self.session.past else {
            return 0;
        };
        let state = &past.state;
        let len = state.len() + self.pending.len();
        let most = most.min(state.cache.capacity().saturating_sub(len));
        let language = self.session.language();
        // The tokens of an encoder-decoder's state are not those of the conversation, and a state
        // that has become long cannot go back.
        match state.cross.is_empty() && language.is_long(len + most) == state.long {
            true => most,
            false => 0,
        }
    }

    fn choose(&mut self, source: Source, most: usize) -> usize {
        match self.speculation {
            Speculation::Auto => self.session.drafting().pace.choose(source, most),
            Speculation::Off | Speculation::Fixed(_) => most,
        }
    }

    /// Asks the draft model, if there is one, for up to `most` tokens. A draft model that fails is
    /// not used again in this session.
    fn model_draft(&mut self, most: usize) -> Vec<u32> {
        let has_model = self.session.drafting().model.is_some();
        let count = match has_model {
            true => self.choose(Source::Model, most),
            false => 0,
        };
        if count == 0 {
            return Vec::new();
        }
        let past = self.session.past.as_ref().expect("there is a state");
        let spoken = past.tokens.iter().filter(|token| token.medium.is_none());
        let text: Vec<u32> = spoken
            .map(|token| token.id)
            .chain(self.pending.iter().copied())
            .collect();
        let _stage = stage::module("draft");
        let start = Instant::now();
        let mut drafting = self.session.drafting();
        let Some(model) = &mut drafting.model else {
            return Vec::new();
        };
        // A model that has to read a prompt first says nothing about the time of further drafts.
        let is_near = model.lag(&text) <= Speculation::MOST;
        match model.draft(&text, count) {
            Ok(draft) => {
                if is_near {
                    let seconds = start.elapsed().as_secs_f64();
                    drafting.pace.observe_drafting(draft.len(), seconds);
                }
                draft
            }
            Err(error) => {
                log::warn!("the draft model is not used any more: {error}");
                drafting.model = None;
                Vec::new()
            }
        }
    }

    /// Asks the model's layer that predicts further tokens, if it follows the conversation, for up to
    /// `most` tokens. A layer that fails is not used again in this conversation.
    fn mtp_draft(&mut self, most: usize) -> Vec<u32> {
        let state = |past: &Past<B>| past.state.mtp.as_ref().map(MtpState::waiting);
        let count = match self.session.past.as_ref().and_then(state) {
            Some(1..) => self.choose(Source::Mtp, most),
            _ => 0,
        };
        let session: &mut Session<B> = &mut self.session;
        let language = session.shared.model.language();
        let (Some(past), [next]) = (&mut session.past, &self.pending[..]) else {
            return Vec::new();
        };
        let at = past.next_position();
        let Some(mtp) = past.state.mtp.as_mut().filter(|_| count > 0) else {
            return Vec::new();
        };
        let _stage = stage::module("draft");
        // Many tokens to be processed first say nothing about the time of further drafts.
        let (start, is_near) = (Instant::now(), mtp.waiting() <= Speculation::MOST + 1);
        match mtp.draft(language, (*next, at), count) {
            Ok(draft) => {
                if is_near {
                    let seconds = start.elapsed().as_secs_f64();
                    let pace = &mut session.drafting().pace;
                    pace.observe_drafting(draft.len(), seconds);
                }
                draft
            }
            Err(error) => {
                log::warn!("the model drafts no more tokens: {error}");
                past.state.mtp = None;
                Vec::new()
            }
        }
    }
}

impl<B: KernelBackend> Drop for Steps<'_, B> {
    fn drop(&mut self) {
        self.close(false);
    }
}
