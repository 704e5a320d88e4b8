//! The tokens of a conversation beside the language model's state.

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::language::{DecoderState, LanguageModel, OutputRows, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::prompt::Span;
use edge_lmm_ops::{CacheError, KernelBackend};

use super::prepare::Prepared;
use crate::features::MediumKey;
use crate::loaded::LoadedModel;

/// A token of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PastToken {
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
    span: Span,
    features: Tensor<B, 2>,
}

impl<B: KernelBackend> Source<B> {
    /// Features of all spans of a prompt whose media are in the cache of encoder outputs.
    pub fn of(prepared: &Prepared<B>, shared: &LoadedModel<B>) -> Vec<Self> {
        let mut cache = shared.features();
        let spans = prepared.prompt.spans.iter();
        let source = spans.filter_map(|&span| {
            let encoded = cache.get(prepared.keys[span.medium])?;
            let features = encoded.features.narrow(0, span.row, span.len);
            Some(Self { span, features })
        });
        source.collect()
    }
}

/// The state of the language model and the tokens that led to it.
pub(super) struct Past<B: KernelBackend> {
    pub state: DecoderState<B>,
    pub tokens: Vec<PastToken>,
    /// Features of the tokens that stand for media, if they may be needed again.
    pub sources: Vec<Source<B>>,
}

impl<B: KernelBackend> Past<B> {
    pub fn new(state: DecoderState<B>) -> Self {
        Self {
            state,
            tokens: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Number of first tokens that are the same as in `tokens`.
    pub fn common(&self, tokens: &[PastToken]) -> usize {
        let pairs = self.tokens.iter().zip(tokens);
        pairs.take_while(|(a, b)| a == b).count()
    }

    pub fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        self.state.truncate(len)?;
        self.tokens.truncate(len);
        self.sources.retain(|source| source.span.end() <= len);
        Ok(())
    }

    pub fn fork(&self) -> Result<Self, CacheError> {
        Ok(Self {
            state: self.state.fork()?,
            tokens: self.tokens.clone(),
            sources: self.sources.clone(),
        })
    }

    /// Position of the next token of text.
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

    /// Computes the state anew for a sequence that has become long, and returns the hidden states
    /// of its last `new` tokens, or of the last one alone.
    pub fn compute_again(
        &mut self,
        language: &dyn LanguageModel<B>,
        new: usize,
        output: OutputRows,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let ids: Vec<u32> = self.tokens.iter().map(|token| token.id).collect();
        let mut embeddings = language.embed(&ids);
        for Source { span, features } in &self.sources {
            let [_, width] = features.dims();
            let place = [span.start..span.end(), 0..width];
            embeddings = embeddings.slice_assign(place, features.clone());
        }
        let positions: Vec<Position> = self.tokens.iter().map(|token| token.position).collect();
        self.state.truncate(0)?;
        let mut input = StepInput::new(embeddings, &positions);
        input.output = output;
        let spans = self.sources.iter().map(|source| source.span);
        let both_ways = spans.filter(|span| span.bidirectional);
        input.bidirectional = both_ways.map(|span| span.start..span.end()).collect();
        let hidden = language.prefill(input, &mut self.state, monitor)?;
        let [rows, _] = hidden.dims();
        Ok(match output {
            OutputRows::Last => hidden,
            OutputRows::All => hidden.narrow(0, rows - new, new),
        })
    }
}
