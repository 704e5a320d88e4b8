//! The tokens of a conversation beside the language model's state.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::language::{
    Checkpoint, DecoderState, Injection, LanguageModel, OutputRows, StepInput,
};
use edge_lmm_models::layout::Position;
use edge_lmm_models::model::Encoded;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::prompt::Span;
use edge_lmm_models::reduce::LanguageReduction;
use edge_lmm_models::reduce::language::StepReduction;
use edge_lmm_ops::{CacheError, KernelBackend};

use crate::features::MediumKey;

/// A token of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PastToken {
    pub id: u32,
    /// The medium that it stands for.
    pub medium: Option<MediumKey>,
    pub position: Position,
    /// Position of text that follows.
    pub next: u32,
}

/// Features of a run of tokens.
#[derive(Debug, Clone)]
pub(super) struct Source<B: KernelBackend> {
    pub span: Span,
    /// `[span.len, hidden_size]`
    pub features: Tensor<B, 2>,
    /// Features that are added before deeper layers.
    pub deep: Vec<(usize, Tensor<B, 2>)>,
}

impl<B: KernelBackend> Source<B> {
    /// Takes the features of a run from its encoded medium.
    pub fn new(span: Span, encoded: &Encoded<B>) -> Self {
        let run = |features: &Tensor<B, 2>| features.clone().narrow(0, span.row, span.len);
        let deep = encoded.deep.iter();
        Self {
            span,
            features: run(&encoded.features),
            deep: deep
                .map(|(layer, features)| (*layer, run(features)))
                .collect(),
        }
    }

    /// Cuts the run off at token `end` of the conversation; `None` if nothing is left.
    fn cut(mut self, end: usize) -> Option<Self> {
        let len = end.checked_sub(self.span.start).filter(|&len| len > 0)?;
        if len < self.span.len {
            self.span.len = len;
            self.features = self.features.narrow(0, 0, len);
            for (_, features) in &mut self.deep {
                *features = features.clone().narrow(0, 0, len);
            }
        }
        Some(self)
    }

    fn injections(&self) -> impl Iterator<Item = Injection<B>> {
        self.deep.iter().map(|(layer, features)| Injection {
            layer: *layer,
            token: self.span.start,
            features: features.clone(),
        })
    }
}

/// The state of the language model and the tokens that led to it.
pub(super) struct Past<B: KernelBackend> {
    pub state: DecoderState<B>,
    pub tokens: Vec<PastToken>,
    /// Features of the tokens that stand for media, if they may be needed again.
    pub sources: Vec<Source<B>>,
    /// Reduction that the tokens of media were taken in with.
    pub reduction: Option<LanguageReduction>,
    /// `true` if the state was read from a file and has not been continued yet.
    pub loaded: bool,
}

impl<B: KernelBackend> Past<B> {
    pub fn new(state: DecoderState<B>) -> Self {
        Self {
            state,
            tokens: Vec::new(),
            sources: Vec::new(),
            reduction: None,
            loaded: false,
        }
    }

    /// Returns the length of the common prefix with `tokens`, or 0 if it contains tokens of media
    /// that were taken in with another reduction.
    pub fn common(&self, tokens: &[PastToken], reduction: Option<LanguageReduction>) -> usize {
        let pairs = self.tokens.iter().zip(tokens);
        let common = pairs.take_while(|(a, b)| a == b).count();
        let has_media = tokens[..common].iter().any(|token| token.medium.is_some());
        match has_media && self.reduction != reduction {
            true => 0,
            false => common,
        }
    }

    /// Returns the number of tokens that the later layers do not hold.
    pub fn dropped(&self) -> usize {
        let dropped = self.state.dropped.as_ref();
        dropped.map_or(0, |dropped| dropped.tokens.len())
    }

    pub fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        self.state.truncate(len)?;
        self.forget_beyond(len);
        Ok(())
    }

    /// Removes the tokens from `len` on of the last step, see [`DecoderState::revise`].
    pub fn revise(&mut self, checkpoint: &Checkpoint, len: usize) -> bool {
        let revised = self.state.revise(checkpoint, len);
        if revised {
            self.forget_beyond(len);
        }
        revised
    }

    /// Returns to the state at a checkpoint, see [`DecoderState::rewind`].
    pub fn rewind(&mut self, checkpoint: Checkpoint) {
        let len = checkpoint.tokens();
        self.state.rewind(checkpoint);
        self.forget_beyond(len);
    }

    /// Forgets the tokens from `len` on that are not in the state, with their features.
    pub fn forget_beyond(&mut self, len: usize) {
        self.tokens.truncate(len);
        let sources = std::mem::take(&mut self.sources).into_iter();
        self.sources = sources.filter_map(|source| source.cut(len)).collect();
    }

    /// Adds the features of runs; they replace those of the same runs that were cut off.
    pub fn add_sources(&mut self, new: Vec<Source<B>>) {
        let is_new = |start| new.iter().any(|source| source.span.start == start);
        self.sources.retain(|source| !is_new(source.span.start));
        self.sources.extend(new);
    }

    pub fn fork(&self) -> Result<Self, CacheError> {
        Ok(Self {
            state: self.state.fork()?,
            tokens: self.tokens.clone(),
            sources: self.sources.clone(),
            reduction: self.reduction,
            loaded: self.loaded,
        })
    }

    /// Returns the position of the next token of text.
    pub fn next_position(&self) -> u32 {
        self.tokens.last().map_or(0, |token| token.next)
    }

    /// Appends tokens of text.
    pub fn push(&mut self, ids: &[u32]) {
        for &id in ids {
            let position = self.next_position();
            self.tokens.push(PastToken {
                id,
                medium: None,
                position: [position; 3],
                next: position.saturating_add(1),
            });
        }
    }

    /// Takes tokens of text into the state in one step, which may be
    /// [revisable](StepInput::revisable). Returns their hidden states. There must be room for them, and
    /// the sequence must not become long.
    ///
    /// # Errors
    /// If the step fails.
    pub fn step(
        &mut self,
        language: &dyn LanguageModel<B>,
        ids: &[u32],
        output: OutputRows,
        revisable: bool,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let first = self.next_position();
        let positions: Vec<Position> = (first..).take(ids.len()).map(|at| [at; 3]).collect();
        let input = StepInput {
            output,
            revisable,
            ..StepInput::new(language.embed(ids), &positions)
        };
        // A step is short: it is not canceled in the middle.
        let mut report = |_| ControlFlow::Continue(());
        let hidden = language.step(input, &mut self.state, &mut Monitor::new(&mut report));
        self.push(ids);
        hidden
    }

    /// Returns `true` if the features of the run are known.
    pub fn has_source(&self, span: &Span) -> bool {
        let has = |source: &Source<B>| source.span.start == span.start;
        self.sources.iter().any(has)
    }

    /// Computes the state anew for a sequence that has become long, and returns the hidden state of
    /// its last token. Tokens that were dropped are dropped again.
    ///
    /// # Errors
    /// If `monitor` cancels, or the features of a medium are not known: the state was read from a
    /// file and no request has continued it.
    pub fn compute_again(
        &mut self,
        language: &dyn LanguageModel<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let shown = self.tokens.iter().filter(|token| token.medium.is_some());
        let known: usize = self.sources.iter().map(|source| source.span.len).sum();
        if shown.count() != known {
            return Err(ModelError::Prompt(
                "the conversation becomes long and the features of its media are not known; ask a \
                 question about the media first"
                    .to_owned(),
            ));
        }
        let ids: Vec<u32> = self.tokens.iter().map(|token| token.id).collect();
        let mut embeddings = language.embed(&ids);
        for Source { span, features, .. } in &self.sources {
            let [_, width] = features.dims();
            let place = [span.start..span.end(), 0..width];
            embeddings = embeddings.slice_assign(place, features.clone());
        }
        let positions: Vec<Position> = self.tokens.iter().map(|token| token.position).collect();
        let dropped = self.state.dropped.clone();
        self.state.truncate(0)?;
        let mut input = StepInput::new(embeddings, &positions);
        input.injections = self.sources.iter().flat_map(Source::injections).collect();
        let spans = self.sources.iter().map(|source| source.span);
        let both_ways = spans.filter(|span| span.bidirectional);
        input.bidirectional = both_ways.map(|span| span.start..span.end()).collect();
        input.reduction = dropped.map(StepReduction::Repeat);
        language.prefill(input, &mut self.state, monitor)
    }
}
