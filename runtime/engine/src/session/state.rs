//! A conversation with a model.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::language::{LanguageModel, OutputRows};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::reduce::Share;
use edge_lmm_ops::{KernelBackend, KvStore, probe, stage};

use super::events::{OnEvent, report};
use super::kept::{Conversations, Kept};
use super::past::Past;
use super::prepare::Prepared;
use super::reuse::Reused;
use super::speculation::Drafting;
use crate::error::EngineError;
use crate::loaded::LoadedModel;
use crate::request::{Event, Request};

/// The key-value cache grows in steps of this many positions.
const CACHE_STEP: usize = 256;

/// A conversation: the state of the language model after the tokens so far.
///
/// Sessions of one [`Engine`](crate::Engine) share its weights; each has its own state and may be
/// moved to another thread.
pub struct Session<B: KernelBackend> {
    pub(super) shared: Arc<LoadedModel<B>>,
    pub(super) past: Option<Past<B>>,
    /// Other conversations.
    pub(super) kept: Arc<Mutex<Kept<B>>>,
    pub(super) drafting: Arc<Mutex<Drafting<B>>>,
}

/// Copy of a session's state, to restore it later.
pub struct Snapshot<B: KernelBackend>(Option<Past<B>>);

/// Scores of the next token, after one or several tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// Returns the number of rows, one for each token.
    pub fn rows(&self) -> usize {
        self.values.len() / self.vocabulary
    }

    /// Returns the scores after token `row`, one for each id.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocabulary..][..self.vocabulary]
    }

    /// Returns the scores after the last token.
    pub fn last(&self) -> &[f32] {
        self.row(self.rows() - 1)
    }

    /// Appends the rows of `next`, scores of the same vocabulary.
    pub(super) fn followed_by(mut self, next: Self) -> Self {
        self.values.extend(next.values);
        self
    }
}

/// A conversation in the state, ready to be continued.
#[derive(Debug, Clone)]
pub struct Prefilled {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that stand for media.
    pub visual_tokens: usize,
    /// Those of [`visual_tokens`](Self::visual_tokens) that the later layers of the language model
    /// process, if the request has a [`Request::language_reduction`].
    pub language_tokens: Option<usize>,
    /// Prompt tokens that were in the state before.
    pub reused_tokens: usize,
    /// Scores of the first token of the answer.
    pub logits: Logits,
}

impl<B: KernelBackend> Session<B> {
    pub(crate) fn new(shared: Arc<LoadedModel<B>>) -> Self {
        Self::with_limits(shared, Conversations::default())
    }

    fn with_limits(shared: Arc<LoadedModel<B>>, limits: Conversations) -> Self {
        Self {
            shared,
            past: None,
            kept: Arc::new(Mutex::new(Kept::new(limits))),
            drafting: Arc::default(),
        }
    }

    /// Returns the number of tokens in the state; for an encoder-decoder, of the decoder's tokens.
    pub fn len(&self) -> usize {
        self.past.as_ref().map_or(0, |past| past.state.len())
    }

    /// Returns `true` if there are no tokens in the state.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of the state.
    pub fn bytes(&self) -> usize {
        self.past.as_ref().map_or(0, |past| past.state.bytes())
    }

    /// Returns the device of the model.
    pub fn device(&self) -> &B::Device {
        &self.shared.device
    }

    /// Forgets all conversations, and the encoder outputs of all media that the model has seen.
    pub fn forget(&mut self) {
        self.past = None;
        self.kept().pasts.clear();
        self.drafting().model = None;
        self.shared.features().clear();
    }

    /// Encodes the media of a request and takes its prompt into the state.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn prefill(
        &mut self,
        request: &Request<'_>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Prefilled, EngineError> {
        let (prepared, reused, logits) = self.take_in(request, &mut on_event)?;
        let logits = self.read(logits)?;
        self.store_prefix(prepared.media_end());
        Ok(Prefilled {
            prompt_tokens: prepared.prompt.ids.len(),
            visual_tokens: prepared.prompt.visual_tokens(),
            language_tokens: self.language_tokens(&prepared, request),
            reused_tokens: reused.tokens,
            logits,
        })
    }

    /// Takes further tokens of text into the state and returns the scores after the last one, or
    /// after each of them. The scores of several tokens are bitwise those of single steps on CPUs.
    ///
    /// # Errors
    /// If there is no conversation yet, no token, an unknown id or no room. The state then has as
    /// many tokens as before. If the device fails, the conversation is forgotten.
    pub fn step(&mut self, ids: &[u32], output: OutputRows) -> Result<Logits, EngineError> {
        let (vocabulary, context) = (self.vocabulary(), self.context_length());
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(EngineError::TokenOutOfRange { id, vocabulary });
        }
        let tokens = self.len() + ids.len();
        if ids.is_empty() || self.past.is_none() {
            return Err(EngineError::NothingToContinue);
        }
        if tokens > context {
            return Err(EngineError::ContextFull { tokens, context });
        }
        self.reserve(tokens)?;
        let logits = self.advance(ids, output, &mut |_| ControlFlow::Continue(()))?;
        self.read(logits)
    }

    /// Removes all tokens from `len` on. Does nothing if there are fewer.
    ///
    /// # Errors
    /// [`ModelError::CannotTruncate`] if the model has recurrent layers: use
    /// [`snapshot`](Self::snapshot). [`ModelError::CannotTruncateReduced`] if tokens would have to be
    /// taken out of a prompt of which tokens of media were dropped
    /// ([`Request::language_reduction`]); `len` may be 0.
    pub fn truncate(&mut self, len: usize) -> Result<(), EngineError> {
        match &mut self.past {
            Some(past) => Ok(past.truncate(len)?),
            None => Ok(()),
        }
    }

    /// Returns a session that continues the current conversation independently.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn fork(&self) -> Result<Self, EngineError> {
        let Snapshot(past) = self.snapshot()?;
        Ok(Self {
            past,
            ..Self::with_limits(self.shared.clone(), self.kept().limits)
        })
    }

    /// Copies the state, to [`restore`](Self::restore) it later.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn snapshot(&self) -> Result<Snapshot<B>, EngineError> {
        let past = self.past.as_ref().map(Past::fork).transpose();
        Ok(Snapshot(past.map_err(ModelError::from)?))
    }

    /// Returns to the state of a snapshot, which can be restored again.
    ///
    /// # Errors
    /// If there is not enough memory; the state is then unchanged.
    pub fn restore(&mut self, snapshot: &Snapshot<B>) -> Result<(), EngineError> {
        let past = snapshot.0.as_ref().map(Past::fork).transpose();
        self.past = past.map_err(ModelError::from)?;
        Ok(())
    }

    /// Locks the draft model and the measured times, which this session shares with the answers that
    /// it has [begun](Self::begin).
    pub(super) fn drafting(&self) -> MutexGuard<'_, Drafting<B>> {
        self.drafting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn language(&self) -> &dyn LanguageModel<B> {
        self.shared.model.language()
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.language().vocabulary()
    }

    pub(super) fn context_length(&self) -> usize {
        self.language().context_length()
    }

    /// Prepares, encodes and prefills. Returns the prompt, its tokens that were in the state before,
    /// and the scores of the next token: `[1, vocabulary]`.
    pub(super) fn take_in(
        &mut self,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<(Prepared<B>, Reused, Tensor<B, 2>), EngineError> {
        let past = self.past.as_ref().map_or(&[][..], |past| &past.tokens);
        let prepared = self.shared.prepare(request, past, on_event)?;
        let outcome = self.prefill_prepared(&prepared, request, on_event);
        self.shared.features().trim(&prepared.keys);
        match outcome {
            Ok((reused, logits)) => Ok((prepared, reused, logits)),
            Err(error) => Err(self.after(error)),
        }
    }

    fn prefill_prepared(
        &mut self,
        prepared: &Prepared<B>,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<(Reused, Tensor<B, 2>), EngineError> {
        // Reading stored states and encoding media again are stages of their own.
        let _stage = stage::top("prefill");
        let tokens = prepared.tokens();
        // With a ratio of 1 nothing is dropped.
        let reduction = request
            .language_reduction()
            .filter(|reduction| reduction.share < Share::ALL);
        let reused = self.reuse(prepared, &tokens, reduction, request.max_tokens)?;
        let from = reused.tokens;
        let past = self.past.as_ref().expect("reuse has made the state");
        let mut sources = match self.may_become_long() {
            true => Some(
                self.shared
                    .missing_sources(prepared, past, from, request, on_event)?,
            ),
            false => None,
        };
        let mut input = self
            .shared
            .embed(prepared, from, sources.as_mut(), request, on_event)?;
        let past = self.past.as_mut().expect("reuse has made the state");
        past.loaded = false;
        let language = self.shared.model.language();
        let (drafts, device) = (self.shared.drafts_with_mtp(request), &self.shared.device);
        if let Err(error) = past.state.follow_with_mtp(language, drafts, device) {
            log::warn!("the model drafts no tokens for this answer: {error}");
        }
        let mut report = report("prefill", on_event);
        let anchors = request.options.reductions.anchors();
        input.reduction = reduction
            .map(|reduction| prepared.reduction(reduction, anchors, from, language))
            .transpose()?;
        past.tokens = tokens;
        past.reduction = reduction;
        past.add_sources(sources.unwrap_or_default());
        let hidden = language.prefill(input, &mut past.state, &mut Monitor::new(&mut report));
        // A canceled prefill has taken in some of its chunks only.
        if hidden.is_err() {
            past.forget_beyond(past.state.len());
        }
        if let Err(ModelError::Compute(_)) = hidden
            && let Some(failure) = B::memory_failure(&self.shared.device)
        {
            return Err(EngineError::Memory(failure));
        }
        let logits = language.logits(hidden?);
        if probe::active() {
            let shown = logits.clone().flatten::<1>(0, 1);
            probe::capture("logits_first", &shown);
        }
        Ok((reused, logits))
    }

    /// Returns how many tokens of media of the prompt in the state the later layers process.
    pub(super) fn language_tokens(
        &self,
        prepared: &Prepared<B>,
        request: &Request<'_>,
    ) -> Option<usize> {
        let dropped = self.past.as_ref().map_or(0, Past::dropped);
        let kept = prepared.prompt.visual_tokens() - dropped;
        request.language_reduction().map(|_| kept)
    }

    /// Forgets the conversation after an error, unless it is a cancellation: a canceled prefill
    /// keeps its complete positions.
    pub(super) fn after(&mut self, error: EngineError) -> EngineError {
        if !matches!(error, EngineError::Model(ModelError::Canceled)) {
            self.past = None;
        }
        error
    }

    /// Returns `true` if keys are of no use once the sequence is long, see
    /// [`LanguageModel::is_long`].
    fn may_become_long(&self) -> bool {
        let language = self.language();
        language.is_long(self.context_length()) != language.is_long(1)
    }

    /// Makes room for `tokens` tokens in all.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        let context = self.context_length();
        if let Some(past) = &mut self.past {
            let capacity = past.state.cache.capacity();
            if tokens > capacity {
                let wanted = capacity_for(tokens, capacity, context);
                past.state.grow(wanted).map_err(ModelError::from)?;
            }
        }
        Ok(())
    }

    /// Takes text tokens into the state and returns their scores: `[1, vocabulary]` or `[ids.len(),
    /// vocabulary]`. There must be a state with room for them.
    ///
    /// Where the sequence becomes long, the state is computed anew, as single steps do it.
    pub(super) fn advance(
        &mut self,
        ids: &[u32],
        output: OutputRows,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let language = self.shared.model.language();
        let past = self.past.as_mut().expect("there is a state to continue");
        let (len, long) = (past.state.len(), past.state.long);
        let fitting = (1..=ids.len()).take_while(|n| language.is_long(len + n) == long);
        let (now, later) = ids.split_at(fitting.count().max(1));
        let hidden = if language.is_long(len + now.len()) == long {
            past.step(language, now, output, false)
        } else {
            past.push(now);
            let mut report = report("prefill", on_event);
            past.compute_again(language, &mut Monitor::new(&mut report))
        };
        let logits = self.logits(hidden)?;
        if later.is_empty() {
            return Ok(logits);
        }
        let rest = self.advance(later, output, on_event)?;
        Ok(match output {
            OutputRows::Last => rest,
            OutputRows::All => Tensor::cat(vec![logits, rest], 0),
        })
    }

    /// Takes text tokens into the state, of which the last ones may be removed again by
    /// [`Past::revise`], and returns their scores: `[ids.len(), vocabulary]`. There must be a state with
    /// room for them, and the sequence must not become long.
    pub(super) fn verify(&mut self, ids: &[u32]) -> Result<Tensor<B, 2>, EngineError> {
        let language = self.shared.model.language();
        let past = self.past.as_mut().expect("there is a state to continue");
        let hidden = past.step(language, ids, OutputRows::All, true);
        self.logits(hidden)
    }

    /// Scores the hidden states of a step. After an error, the tokens that are not in the state are
    /// forgotten.
    fn logits(
        &mut self,
        hidden: Result<Tensor<B, 2>, ModelError>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        match hidden {
            Ok(hidden) => Ok(self.language().logits(hidden)),
            Err(error) => {
                if let Some(past) = &mut self.past {
                    past.forget_beyond(past.state.len());
                }
                Err(self.after(error.into()))
            }
        }
    }

    /// Reads scores. This is where a device that works asynchronously reports earlier errors.
    pub(super) fn read(&mut self, logits: Tensor<B, 2>) -> Result<Logits, EngineError> {
        let vocabulary = self.vocabulary();
        let data = logits.try_into_data();
        if let Some(failure) = B::memory_failure(&self.shared.device) {
            return Err(self.after(EngineError::Memory(failure)));
        }
        let read = |data: burn::tensor::TensorData| data.into_vec().expect("scores are f32");
        match data {
            Ok(data) => Ok(Logits {
                values: read(data),
                vocabulary,
            }),
            Err(error) => Err(self.after(EngineError::Compute(error.to_string()))),
        }
    }
}

/// Returns the number of positions to allocate if `needed` are needed and `current` are allocated:
/// rounded up, and at least 1.5 times as many, so that a growing conversation copies its cache only
/// a few times.
pub(super) fn capacity_for(needed: usize, current: usize, context: usize) -> usize {
    let grown = needed.max(current + current / 2);
    grown.next_multiple_of(CACHE_STEP).min(context).max(needed)
}
