//! The tokens of an answer, one after the other.

mod together;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use edge_lmm_models::prompt::TextStream;
use edge_lmm_models::reduce::Reduction;
use edge_lmm_ops::{KernelBackend, argmax, stage};

use super::events::OnEvent;
use super::held::Held;
use super::logprobs::TokenLogprobs;
use super::speculation::{Scores, Steps};
use super::state::Session;
use crate::error::EngineError;
use crate::generation::Run;
use crate::processors::LogitsProcessor;
use crate::request::{Answer, Event, FinishReason, Request};
use crate::sampler::Sampler;
use crate::stop::StopFilter;
use crate::timing::{Recording, Timing};

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The id.
    pub id: u32,
    /// Text that is complete with it; empty within a character or a possible stop string.
    pub text: String,
    /// Its log-probability, if the request asks for them.
    pub logprobs: Option<TokenLogprobs>,
}

impl Token {
    /// Reports the events of the token, which is number `done` of an answer of at most `total`, as
    /// [`Session::answer`] does. Breaks if `on_event` does.
    pub fn report(
        &self,
        done: usize,
        total: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if let Some(logprobs) = &self.logprobs {
            on_event(Event::Logprobs(logprobs))?;
        }
        if !self.text.is_empty() {
            on_event(Event::Text(&self.text))?;
        }
        let stage = "decode";
        on_event(Event::Progress { stage, done, total })
    }
}

/// An answer while it is generated: an iterator over its tokens.
///
/// Each token is computed when it is asked for. Dropping the iterator ends the answer; the session
/// then continues after the tokens so far.
pub struct Generation<'s, B: KernelBackend> {
    steps: Steps<'s, B>,
    sampler: Sampler,
    stream: TextStream,
    stop: StopFilter,
    /// All tokens that processors see.
    tokens: Vec<u32>,
    answer: Answer,
    max_tokens: usize,
    ignore_eos: bool,
    /// Number of most likely tokens to report.
    logprobs: Option<usize>,
    /// Scores of the next token.
    logits: Option<Tensor<B, 2>>,
    started: Instant,
    recording: Option<Recording>,
    ended: bool,
    /// Tokens up to the end of the last medium, which are stored after the answer.
    media_end: usize,
}

impl<B: KernelBackend> Session<B> {
    /// Answers a request; `on_event` gets text and progress as they come, and cancels the request
    /// by returning [`ControlFlow::Break`].
    ///
    /// Tokens that the prompt shares with the conversation so far are not computed again. A request
    /// that is canceled during decoding gives the answer so far.
    ///
    /// # Errors
    /// If the prompt cannot be put together or does not fit, and [`Canceled`](edge_lmm_models::ModelError::Canceled) if the
    /// request is canceled before the first token. The conversation so far is kept.
    pub fn answer(
        &mut self,
        request: &Request<'_>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let mut generation = self.generate(request, Vec::new(), &mut on_event)?;
        for (done, token) in (1..).zip(generation.by_ref()) {
            let reported = token?.report(done, request.max_tokens, &mut on_event);
            if reported.is_break() {
                break;
            }
        }
        let (answer, rest) = generation.finish()?;
        if !rest.is_empty() {
            // Nothing more can be canceled.
            let _ = on_event(Event::Text(&rest));
        }
        Ok(answer)
    }

    /// Encodes the media of a request, takes its prompt into the state, and returns an iterator
    /// over the tokens of the answer. `processors` change the scores after those of the request
    /// and of the checkpoint; `on_event` is called until the first token is known.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        processors: Vec<Box<dyn LogitsProcessor>>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation<'_, B>, EngineError> {
        let begun = self.start(request, processors, &mut on_event)?;
        Ok(Generation::new(Held::Borrowed(self), request, begun))
    }

    /// Takes a request in as [`generate`](Self::generate) does, and gives its conversation to the
    /// answer, so that this session is free for another request meanwhile. When the answer is
    /// finished or dropped, its conversation becomes one of those that the session keeps
    /// ([`keep_conversations`](Self::keep_conversations)).
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        processors: Vec<Box<dyn LogitsProcessor>>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation<'static, B>, EngineError> {
        let begun = self.start(request, processors, &mut on_event)?;
        let session = Held::Owned(Box::new(self.detach()));
        Ok(Generation::new(session, request, begun))
    }

    /// Takes a prompt in.
    fn start(
        &mut self,
        request: &Request<'_>,
        processors: Vec<Box<dyn LogitsProcessor>>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Begun<B>, EngineError> {
        let session = self;
        let started = Instant::now();
        let device = &session.shared.device;
        let mut recording = request.timing.then(|| Recording::on::<B>(device));
        let entered = recording.as_mut().map(Recording::enter);
        // An invalid constraint is reported before anything is computed.
        let compile = |constraint| session.shared.matching(constraint);
        let constraint = request.constraint.map(compile).transpose()?;
        let (prepared, reused, logits) = session.take_in(request, on_event)?;
        let language_tokens = session.language_tokens(&prepared, request);
        let mut reductions = prepared.reductions.clone();
        let in_language = request.language_reduction().map(Reduction::Language);
        reductions.extend(
            in_language
                .zip(language_tokens)
                .map(|(method, n)| method.left(n)),
        );
        let prompt = &prepared.prompt;
        let tokens = session.language().decoder_tokens(&prompt.ids);
        let run = Run {
            prompt: tokens.len(),
            max_tokens: request.max_tokens,
            end_tokens: &session.shared.end_tokens,
        };
        let mut chain = session
            .shared
            .generation
            .processors(&request.sampling, run)?;
        chain.extend(processors);
        drop(entered);
        let answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            prompt_tokens: prompt.ids.len(),
            visual_tokens: prompt.visual_tokens(),
            language_tokens,
            reused_tokens: reused.tokens,
            reused_from: reused.from,
            reductions,
            finish_reason: FinishReason::Canceled,
            speculation: None,
            estimated_first_token: prepared.estimate,
            first_token: started.elapsed(),
            timing: Timing::default(),
        };
        Ok(Begun {
            sampler: Sampler::new(request.sampling.clone(), chain)
                .with_constraint(constraint.map(|matching| matching.after(tokens.len()))),
            tokens,
            answer,
            logits,
            started,
            recording,
            media_end: prepared.media_end(),
        })
    }
}

/// An answer whose prompt has been taken in.
struct Begun<B: KernelBackend> {
    sampler: Sampler,
    tokens: Vec<u32>,
    answer: Answer,
    logits: Tensor<B, 2>,
    started: Instant,
    recording: Option<Recording>,
    media_end: usize,
}

impl<'s, B: KernelBackend> Generation<'s, B> {
    fn new(session: Held<'s, B>, request: &Request<'_>, begun: Begun<B>) -> Self {
        let mut generation = Self {
            sampler: begun.sampler,
            stream: TextStream::default(),
            stop: StopFilter::new(request.stop),
            steps: Steps::new(session, request.speculation),
            tokens: begun.tokens,
            answer: begun.answer,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            logits: Some(begun.logits),
            started: begun.started,
            recording: begun.recording,
            ended: false,
            media_end: begun.media_end,
        };
        if request.max_tokens == 0 {
            generation.end(FinishReason::Length);
        }
        generation
    }

    /// Returns `true` if no token follows: the answer has ended by itself, or failed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the bytes of the conversation's keys and values that are reserved and not in use
    /// yet.
    pub fn reserved_bytes(&self) -> usize {
        let past = self.steps.session.past.as_ref();
        past.map_or(0, |past| past.state.reserved_bytes())
    }

    /// Returns the device of the model.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> &B::Device {
        self.steps.session.device()
    }

    /// Forgets all conversations of the session that began the answer, and all encoder outputs.
    pub(crate) fn forget(&mut self) {
        self.steps.session.forget();
    }

    fn end(&mut self, reason: FinishReason) {
        self.ended = true;
        self.answer.finish_reason = reason;
    }

    /// Computes the scores of the next token from the last one, and appends the token.
    fn advance(&mut self) -> Result<Token, EngineError> {
        // The prompt gives the first token.
        let _stage = stage::top(match self.logits {
            Some(_) => "prefill",
            None => "decode",
        });
        let logits = match self.logits.take() {
            Some(logits) => Scores::Device(logits),
            None => {
                let left = self.max_tokens - self.answer.tokens.len();
                self.steps.scores(&self.tokens, left)?
            }
        };
        self.append(logits)
    }

    /// Picks the next token and appends it to the answer.
    fn append(&mut self, logits: Scores<B>) -> Result<Token, EngineError> {
        let (id, logprobs) = self.pick(logits)?;
        self.steps.accept(id);
        if self.answer.tokens.is_empty() {
            self.answer.first_token = self.started.elapsed();
        }
        self.answer.tokens.push(id);
        self.tokens.push(id);
        let is_end = self.steps.session.shared.end_tokens.contains(&id) && !self.ignore_eos;
        let mut text = String::new();
        if is_end {
            self.end(FinishReason::Stop);
        } else {
            let new = self.stream.push(&self.steps.session.shared.text, id)?;
            text = self.stop.push(&new);
            self.end_if_full();
            if self.sampler.is_complete(&self.tokens)? {
                self.end(FinishReason::Stop);
            }
        }
        if self.ended {
            let rest = std::mem::take(&mut self.stream).finish(&self.steps.session.shared.text)?;
            text.push_str(&self.stop.push(&rest));
            text.push_str(&self.stop.finish());
        }
        if self.stop.stopped() {
            self.end(FinishReason::Stop);
        }
        self.answer.text.push_str(&text);
        Ok(Token { id, text, logprobs })
    }

    /// Ends the answer if no further token is wanted or possible.
    fn end_if_full(&mut self) {
        if self.answer.tokens.len() >= self.max_tokens {
            return self.end(FinishReason::Length);
        }
        if self.steps.is_full() {
            self.end(FinishReason::Context);
        }
    }

    /// Picks the next token.
    fn pick(&mut self, scores: Scores<B>) -> Result<(u32, Option<TokenLogprobs>), EngineError> {
        let at = self.answer.prompt_tokens + self.answer.tokens.len();
        let mut logprobs = None;
        let picked = match scores {
            // A device with memory of its own transfers only the index.
            Scores::Device(scores) if self.sampler.takes_argmax() && self.logprobs.is_none() => {
                let picked =
                    argmax(scores).map_err(|error| EngineError::Compute(error.to_string()));
                match B::memory_failure(&self.steps.session.shared.device) {
                    Some(failure) => Err(EngineError::Memory(failure)),
                    None => picked,
                }
                .map_err(|error| self.steps.session.after(error))?
            }
            scores => {
                let (scores, row) = match scores {
                    Scores::Device(scores) => (Arc::new(self.steps.session.read(scores)?), 0),
                    Scores::Row(scores, row) => (scores, row),
                };
                let scores = scores.row(row);
                let picked = self.sampler.pick(scores, &self.tokens)?;
                let text = &self.steps.session.shared.text;
                logprobs = self.logprobs.zip(picked).map(|(count, id)| {
                    TokenLogprobs::new(scores, id, count, |id| text.token_bytes(id))
                });
                picked
            }
        };
        let id = picked.ok_or_else(|| self.steps.session.after(EngineError::NotANumber(at)))?;
        Ok((id, logprobs))
    }

    /// Ends the answer and returns it together with text that was held back because it might have
    /// become a stop string or a character. An answer that did not end by itself counts as
    /// canceled.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(mut self) -> Result<(Answer, String), EngineError> {
        let mut rest = String::new();
        if !self.ended {
            let text = std::mem::take(&mut self.stream).finish(&self.steps.session.shared.text)?;
            rest = self.stop.push(&text);
            rest.push_str(&self.stop.finish());
            self.answer.text.push_str(&rest);
        }
        self.answer.speculation = self.steps.counts();
        let store = || self.steps.session.store_prefix(self.media_end);
        match self.recording {
            Some(mut recording) => {
                recording.run(store);
                self.answer.timing = recording.finish();
            }
            None => store(),
        }
        Ok((self.answer, rest))
    }
}

impl<B: KernelBackend> Iterator for Generation<'_, B> {
    type Item = Result<Token, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut recording = self.recording.take();
        let token = match &mut recording {
            Some(recording) => recording.run(|| self.advance()),
            None => self.advance(),
        };
        self.recording = recording;
        if token.is_err() {
            self.ended = true;
        }
        Some(token)
    }
}
