//! The interface of language models and their state between steps.

use std::any::Any;
use std::ops::{ControlFlow, Range};

use burn::tensor::Tensor;
use edge_lmm_ops::{CacheError, CacheShape, KernelBackend, KvStore, select_rows};

use crate::error::ModelError;
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::mtp::{MtpLayer, MtpState};
use crate::reduce::anchors::RotaryMeans;
use crate::reduce::language::{self, DecoderLayers, Dropped, StepReduction};

/// Default number of tokens that [`LanguageModel::prefill`] processes at once: enough to fill the
/// kernels' tiles, few enough to keep the activations of the widest layer small.
pub const PREFILL_CHUNK: usize = 512;

/// State of layers other than attention, such as the matrices of a gated delta rule or the last
/// rows of a short convolution.
///
/// A model creates one for each such layer ([`LanguageModel::recurrent_states`]) and downcasts it
/// in its step.
pub trait RecurrentState: Send {
    /// Returns the allocated bytes.
    fn bytes(&self) -> usize;
    /// Returns an independent copy.
    fn fork(&self) -> Box<dyn RecurrentState>;
    /// Returns the state after the first `tokens` tokens of the last step, at least one; `None` if the
    /// step was not [revisable](StepInput::revisable), or the model does not support it.
    fn revised(&self, _tokens: usize) -> Option<Box<dyn RecurrentState>> {
        None
    }
    /// Returns `self` as [`Any`], to downcast it to the model's own type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// State of a language model after the tokens so far.
///
/// Layers of attention, with or without a sliding window, keep keys and values in the cache. Other
/// kinds of layers have a [`RecurrentState`].
pub struct DecoderState<B: KernelBackend> {
    /// Keys and values of past positions.
    pub cache: B::KvCache,
    /// Keys and values of an encoder's output for every layer that attends to it:
    /// `[encoder tokens, 2 * heads * head_dim]`. Empty for decoder-only models.
    pub cross: Vec<Tensor<B, 2>>,
    /// State of the layers that are not attention.
    pub recurrent: Vec<Box<dyn RecurrentState>>,
    /// Tokens that only the first layers of the cache hold, if any were dropped.
    pub dropped: Option<Dropped>,
    /// `true` if the keys are those of a long sequence, see [`LanguageModel::is_long`].
    pub long: bool,
    /// State of the layer that predicts further tokens, if it follows the conversation.
    pub mtp: Option<MtpState<B>>,
}

/// Length of a state, to which [`DecoderState::rewind`] returns.
pub struct Checkpoint {
    len: usize,
    recurrent: Vec<Box<dyn RecurrentState>>,
}

impl Checkpoint {
    /// Returns the number of tokens in the state at the checkpoint.
    pub fn tokens(&self) -> usize {
        self.len
    }
}

impl<B: KernelBackend> DecoderState<B> {
    /// Creates the empty state of `model` with memory for `capacity` positions.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new<L: LanguageModel<B> + ?Sized>(
        model: &L,
        capacity: usize,
        device: &B::Device,
    ) -> Result<Self, CacheError> {
        Ok(Self {
            cache: B::kv_cache(model.cache_shape(capacity), device)?,
            cross: Vec::new(),
            recurrent: model.recurrent_states(device),
            dropped: None,
            long: false,
            mtp: None,
        })
    }

    /// Lets the layer of `model` that predicts further tokens follow the conversation from here on, or
    /// forgets its state. Does nothing if it follows already, or if the model has no such layer.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn follow_with_mtp<L: LanguageModel<B> + ?Sized>(
        &mut self,
        model: &L,
        follows: bool,
        device: &B::Device,
    ) -> Result<(), CacheError> {
        let layer = model.mtp().filter(|_| follows);
        let capacity = self.cache.capacity();
        self.mtp = match (layer, self.mtp.take()) {
            (Some(_), Some(state)) => Some(state),
            (Some(layer), None) => Some(MtpState::new(layer, capacity, device)?),
            (None, _) => None,
        };
        Ok(())
    }

    /// Makes room for `capacity` tokens.
    ///
    /// # Errors
    /// If there is not enough memory; the state is then unchanged, but the layer that predicts further
    /// tokens may follow no longer.
    pub fn grow(&mut self, capacity: usize) -> Result<(), CacheError> {
        let mtp = self.mtp.take();
        self.cache.grow(capacity)?;
        self.mtp = mtp.and_then(|mut mtp| mtp.grow(capacity).ok().map(|()| mtp));
        Ok(())
    }

    /// Returns the number of tokens in the state.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns `true` if there are no tokens in the state.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Returns `true` if [`truncate`](Self::truncate) can leave `len` tokens.
    pub fn can_truncate(&self, len: usize) -> bool {
        let reduced = self.dropped.as_ref().map_or(0, |dropped| dropped.end);
        len >= self.len() || (self.recurrent.is_empty() && (len == 0 || len >= reduced))
    }

    /// Removes all tokens from `len` on. Does nothing if there are fewer.
    ///
    /// # Errors
    /// [`ModelError::CannotTruncate`] if tokens would have to be taken out of a recurrent state, and
    /// [`ModelError::CannotTruncateReduced`] if some, but not all, would have to be taken out of a
    /// prompt of which tokens were [`dropped`](Self::dropped).
    pub fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        if len >= self.len() {
            return Ok(());
        }
        if !self.recurrent.is_empty() {
            return Err(ModelError::CannotTruncate);
        }
        match &self.dropped {
            Some(_) if len == 0 => self.dropped = None,
            Some(Dropped { end, .. }) if len < *end => {
                return Err(ModelError::CannotTruncateReduced { len, end: *end });
            }
            _ => {}
        }
        self.cut(len);
        Ok(())
    }

    /// Shortens the cache to `len` tokens, and the state of the layer that predicts further tokens
    /// with it.
    fn cut(&mut self, len: usize) {
        let removed = self.len().saturating_sub(len);
        self.mtp.take_if(|mtp| !mtp.remove_last(removed));
        self.cache.truncate(len);
    }

    /// Marks the current length. Recurrent states are copied, keys and values are not.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            len: self.len(),
            recurrent: self.recurrent.iter().map(|state| state.fork()).collect(),
        }
    }

    /// Removes the tokens that were added by steps since `checkpoint`, which must be one of this
    /// state. The state must not have been truncated further or have become
    /// [`long`](Self::long) in the meantime.
    pub fn rewind(&mut self, checkpoint: Checkpoint) {
        self.recurrent = checkpoint.recurrent;
        self.cut(checkpoint.len);
    }

    /// Removes the tokens from `len` on of the last step, which began at `checkpoint` and was
    /// [revisable](StepInput::revisable). Returns `false`, and changes nothing, if no token of the step
    /// would be left, or if the model cannot revise steps.
    pub fn revise(&mut self, checkpoint: &Checkpoint, len: usize) -> bool {
        let Some(tokens) = len.checked_sub(checkpoint.len).filter(|&tokens| tokens > 0) else {
            return false;
        };
        let states = self.recurrent.iter().map(|state| state.revised(tokens));
        let Some(revised) = states.collect() else {
            return false;
        };
        self.recurrent = revised;
        self.cut(len);
        true
    }

    /// Returns an independent copy.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn fork(&self) -> Result<Self, CacheError> {
        Ok(Self {
            cache: self.cache.fork()?,
            cross: self.cross.clone(),
            recurrent: self.recurrent.iter().map(|state| state.fork()).collect(),
            dropped: self.dropped.clone(),
            long: self.long,
            mtp: self.mtp.as_ref().map(MtpState::fork).transpose()?,
        })
    }

    /// Returns the bytes of keys and values that are reserved and not in use yet.
    pub fn reserved_bytes(&self) -> usize {
        reserved_bytes(&self.cache) + self.mtp.as_ref().map_or(0, MtpState::reserved_bytes)
    }

    /// Returns the allocated bytes.
    pub fn bytes(&self) -> usize {
        let elements: usize = self.cross.iter().map(|kv| kv.shape().num_elements()).sum();
        let recurrent: usize = self.recurrent.iter().map(|state| state.bytes()).sum();
        let mtp = self.mtp.as_ref().map_or(0, MtpState::bytes);
        self.cache.bytes() + elements * size_of::<f32>() + recurrent + mtp
    }
}

/// Returns the bytes of a cache that are reserved and not in use yet.
pub(crate) fn reserved_bytes(cache: &impl KvStore) -> usize {
    let capacity = cache.capacity();
    cache.bytes() / capacity.max(1) * capacity.saturating_sub(cache.len())
}

/// Features that are added to the hidden states of some tokens before a layer, such as those of
/// DeepStack ([arXiv:2406.04334](https://arxiv.org/abs/2406.04334)).
#[derive(Debug, Clone)]
pub struct Injection<B: KernelBackend> {
    /// Index of the layer.
    pub layer: usize,
    /// First token.
    pub token: usize,
    /// `[tokens, hidden_size]`
    pub features: Tensor<B, 2>,
}

/// The hidden states that a step returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputRows {
    /// Only the last token. The last layer then computes no other.
    #[default]
    Last,
    /// All tokens; in a prefill with a reduction, those that are left.
    All,
}

/// Tokens for a language model.
#[derive(Debug, Clone)]
pub struct StepInput<'a, B: KernelBackend> {
    /// Embeddings and features: `[tokens, hidden_size]`.
    pub embeddings: Tensor<B, 2>,
    /// Position of each token.
    pub positions: &'a [Position],
    /// Features to be added before deeper layers.
    pub injections: Vec<Injection<B>>,
    /// Disjoint runs of tokens, in order, that attend to each other in both directions.
    pub bidirectional: Vec<Range<usize>>,
    /// The hidden states to return.
    pub output: OutputRows,
    /// Tokens that the later layers are not to process. Only [`LanguageModel::prefill`] drops
    /// tokens; a step processes all.
    pub reduction: Option<StepReduction>,
    /// Lets recurrent layers keep what they need to remove the last tokens of the step again
    /// ([`DecoderState::revise`]), for steps of a few tokens.
    pub revisable: bool,
}

impl<'a, B: KernelBackend> StepInput<'a, B> {
    /// Creates the input of plain text or features, without injections, bidirectional runs or a
    /// reduction.
    pub fn new(embeddings: Tensor<B, 2>, positions: &'a [Position]) -> Self {
        Self {
            embeddings,
            positions,
            injections: Vec::new(),
            bidirectional: Vec::new(),
            output: OutputRows::default(),
            reduction: None,
            revisable: false,
        }
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Returns `true` if there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Returns the tokens at `range`.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let Range { start, end } = range;
        let injections = self.injections.iter().filter_map(|injection| {
            let [rows, _] = injection.features.dims();
            let first = injection.token.max(start);
            let last = (injection.token + rows).min(end);
            (first < last).then(|| Injection {
                layer: injection.layer,
                token: first - start,
                features: injection.features.clone().narrow(
                    0,
                    first - injection.token,
                    last - first,
                ),
            })
        });
        let runs = self
            .bidirectional
            .iter()
            .filter(|run| run.start >= start && run.end <= end);
        Self {
            embeddings: self.embeddings.clone().narrow(0, start, end - start),
            positions: &self.positions[range],
            injections: injections.collect(),
            bidirectional: runs.map(|run| run.start - start..run.end - start).collect(),
            output: self.output,
            reduction: None,
            revisable: self.revisable,
        }
    }

    /// Returns the tokens at the ascending indices `kept`, which have the given positions. The
    /// embeddings of `self` must be those of the kept tokens already.
    pub(crate) fn keep<'k>(&self, kept: &[usize], positions: &'k [Position]) -> StepInput<'k, B> {
        let place = |token: usize| kept.partition_point(|&other| other < token);
        let injections = self.injections.iter().filter_map(|injection| {
            let [rows, _] = injection.features.dims();
            let places = place(injection.token)..place(injection.token + rows);
            let rows = kept[places.clone()].iter();
            let rows: Vec<u32> = rows.map(|token| (token - injection.token) as u32).collect();
            (!rows.is_empty()).then(|| Injection {
                layer: injection.layer,
                token: places.start,
                features: select_rows(injection.features.clone(), &rows),
            })
        });
        let runs = self.bidirectional.iter();
        let runs = runs.map(|run| place(run.start)..place(run.end));
        StepInput {
            embeddings: self.embeddings.clone(),
            positions,
            injections: injections.collect(),
            bidirectional: runs.filter(|run| !run.is_empty()).collect(),
            output: self.output,
            reduction: None,
            revisable: self.revisable,
        }
    }

    /// Returns the bounds of parts of about `size` tokens. No part ends within a bidirectional run,
    /// whose tokens have to be in the cache together.
    pub(crate) fn bounds(&self, size: usize) -> Vec<usize> {
        let mut bounds = vec![0];
        let mut end = 0;
        while end < self.len() {
            end = (end + size).min(self.len());
            if let Some(run) = self
                .bidirectional
                .iter()
                .find(|run| run.contains(&end) && run.start < end)
            {
                end = run.end;
            }
            bounds.push(end);
        }
        bounds
    }

    /// Adds the features for `layer` to the hidden states `x`.
    pub fn inject(&self, layer: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let injections = self
            .injections
            .iter()
            .filter(|injection| injection.layer == layer);
        injections.fold(
            x,
            |x,
             Injection {
                 token, features, ..
             }| {
                let [rows, width] = features.dims();
                let place = [*token..token + rows, 0..width];
                let sum = x.clone().slice(place.clone()) + features.clone();
                x.slice_assign(place, sum)
            },
        )
    }

    /// Returns the range of keys that each token attends to after `past` tokens in the cache, with
    /// or without a sliding window of `window` tokens. `None` stands for causal attention.
    pub fn visible(&self, past: usize, window: Option<usize>) -> Option<Vec<Range<usize>>> {
        let window = window.filter(|&window| window < past + self.len());
        if window.is_none() && self.bidirectional.is_empty() {
            return None;
        }
        let mut ranges: Vec<Range<usize>> = (past + 1..past + self.len() + 1)
            .map(|end| window.map_or(0, |window| end.saturating_sub(window))..end)
            .collect();
        for run in &self.bidirectional {
            for range in &mut ranges[run.clone()] {
                *range = range.start.min(past + run.start)..past + run.end;
            }
        }
        Some(ranges)
    }
}

/// A language model that continues a sequence of embeddings.
///
/// The default methods are those of a decoder-only model.
pub trait LanguageModel<B: KernelBackend> {
    /// Returns the width of an embedding.
    fn hidden_size(&self) -> usize;

    /// Returns the number of rows of the embedding table; smaller ids are valid.
    fn vocabulary(&self) -> usize;

    /// Returns the largest number of positions that the model was trained for.
    fn context_length(&self) -> usize;

    /// Returns the shape of a cache for `capacity` positions.
    fn cache_shape(&self, capacity: usize) -> CacheShape;

    /// Creates empty states of the layers that are not attention.
    fn recurrent_states(&self, _device: &B::Device) -> Vec<Box<dyn RecurrentState>> {
        Vec::new()
    }

    /// Returns the bytes of the states of the layers that are not attention.
    fn recurrent_bytes(&self) -> usize {
        0
    }

    /// Returns the number of positions that the cache needs for a prompt of `prompt` tokens and an
    /// answer of `answer` tokens.
    fn positions(&self, prompt: usize, answer: usize) -> usize {
        prompt.saturating_add(answer).min(self.context_length())
    }

    /// Returns how many of the `shared` first tokens [`Self::prefill`] can skip, where a new prompt
    /// begins with the same `shared` tokens as the one in the state. This is the number of
    /// positions to keep in the cache.
    fn reusable(&self, shared: usize) -> usize {
        shared
    }

    /// Returns `true` if a sequence of that many tokens is long for LongRoPE (Ding et al. 2024),
    /// which encodes all positions of long sequences differently. Keys of short and long sequences
    /// cannot be mixed.
    fn is_long(&self, _tokens: usize) -> bool {
        false
    }

    /// Returns the tokens that the answer continues: those of the prompt, or those of the decoder
    /// if an encoder takes the prompt.
    fn decoder_tokens(&self, prompt: &[u32]) -> Vec<u32> {
        prompt.to_vec()
    }

    /// Returns the embeddings of tokens: `[ids.len(), hidden_size]`.
    fn embed(&self, ids: &[u32]) -> Tensor<B, 2>;

    /// Returns the layers, if they can be run in parts: those of a decoder-only model without
    /// recurrent layers. The reduction of tokens inside the language model needs them.
    fn decoder_layers(&self) -> Option<&dyn DecoderLayers<B>> {
        None
    }

    /// Returns the layer that predicts further tokens, if the model has one. Steps then push their
    /// tokens to [`DecoderState::mtp`], if that is there.
    fn mtp(&self) -> Option<&dyn MtpLayer<B>> {
        None
    }

    /// Returns the mean cosine and mean sine of the rotary angles of each position in a sequence
    /// that is not long; `None` without rotary embeddings.
    fn rotary_means(&self, _positions: &[Position]) -> Option<Vec<RotaryMeans>> {
        None
    }

    /// Returns the number of tokens that [`Self::prefill`] processes at once.
    fn prefill_chunk(&self) -> usize {
        PREFILL_CHUNK
    }

    /// Processes the tokens of the prompt that are not in the state yet, at least one, in chunks.
    /// Returns the hidden states that the next tokens are scored with: `[1, hidden_size]`, or
    /// `[tokens, hidden_size]` for [`OutputRows::All`].
    ///
    /// If `input` has a reduction, the first layers process all tokens before the others process
    /// those that are left; see [`reduce::language`](crate::reduce::language).
    ///
    /// # Errors
    /// If `monitor` cancels; the state then holds the chunks that are complete, or, with a
    /// reduction, as many tokens as before. If the model cannot reduce tokens.
    fn prefill(
        &self,
        mut input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        state.long = self.is_long(state.len() + input.len());
        let chunk = self.prefill_chunk();
        let reduction = input.reduction.take();
        if let Some(reduction) = reduction.filter(|reduction| reduction.count() > 0) {
            let layers = self.decoder_layers().ok_or_else(language::unsupported)?;
            return language::prefill(layers, input, &reduction, chunk, state, monitor);
        }
        let bounds = input.bounds(chunk);
        let chunks = bounds.len() - 1;
        let mut hidden = Vec::new();
        for (i, bounds) in bounds.windows(2).enumerate() {
            let chunk = input.part(bounds[0]..bounds[1]);
            let rows = monitor.pass(i, chunks, |monitor| self.step(chunk, state, monitor))?;
            if input.output == OutputRows::Last {
                hidden.clear();
            }
            hidden.push(rows);
        }
        match hidden.len() {
            0 => Err(ModelError::Prompt("it is empty".to_owned())),
            1 => Ok(hidden.remove(0)),
            _ => Ok(Tensor::cat(hidden, 0)),
        }
    }

    /// Processes further tokens and returns their normalized hidden states: `[1, hidden_size]`, or
    /// `[tokens, hidden_size]` for [`OutputRows::All`].
    ///
    /// # Errors
    /// If `monitor` cancels; the state then has as many tokens as before.
    fn step(
        &self,
        input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError>;

    /// Continues several conversations by one token each: token `i` of `input` continues
    /// `states[i]`. Returns the normalized hidden state of each token: `[tokens, hidden_size]`.
    /// `input` has neither injections nor bidirectional runs, and every state has room for the token.
    ///
    /// On CPUs, the results are bitwise those of single [steps](Self::step). By default, the
    /// conversations are continued in turn. A model whose layers are attention computes the products
    /// of all tokens together, so that the weights are read once.
    ///
    /// # Errors
    /// If a step fails. Some of the states may then have taken their token in.
    ///
    /// # Panics
    /// If the number of states is not that of tokens, or 0.
    fn step_together(
        &self,
        input: StepInput<'_, B>,
        states: &mut [&mut DecoderState<B>],
    ) -> Result<Tensor<B, 2>, ModelError> {
        step_in_turn(self, &input, states)
    }

    /// Returns the scores of the next token for each hidden state: `[rows, vocabulary]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2>;
}

/// Continues conversations in turn: the default of [`LanguageModel::step_together`].
///
/// # Errors
/// If a step fails. Some of the states may then have taken their token in.
///
/// # Panics
/// If the number of states is not that of tokens, or 0.
pub fn step_in_turn<B: KernelBackend>(
    model: &(impl LanguageModel<B> + ?Sized),
    input: &StepInput<'_, B>,
    states: &mut [&mut DecoderState<B>],
) -> Result<Tensor<B, 2>, ModelError> {
    assert_eq!(input.len(), states.len(), "a token for every conversation");
    let mut go_on = |_| ControlFlow::Continue(());
    let rows = states.iter_mut().enumerate().map(|(i, state)| {
        let token = input.part(i..i + 1);
        model.step(token, state, &mut Monitor::new(&mut go_on))
    });
    Ok(Tensor::cat(rows.collect::<Result<_, _>>()?, 0))
}
