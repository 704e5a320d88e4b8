//! Reduction of the tokens of media inside the language model: FastV (Chen et al. 2024,
//! [arXiv:2403.06764](https://arxiv.org/abs/2403.06764)).
//!
//! The first layers process all tokens of a prompt. The other layers process the text and those
//! tokens of media that the last token of the prompt attends to most; they hold no keys and values
//! of the others. Positions do not change. The last token itself is always kept. The prompt is
//! therefore computed in two passes: the first layers over all of it, then the other layers over
//! what is left.
//!
//! A sliding window of a layer counts the tokens that the layer holds.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, KvStore, probe, select_rows};

use crate::error::ModelError;
use crate::language::{DecoderState, LanguageModel, OutputRows, StepInput};
use crate::layout::Position;
use crate::monitor::Monitor;
use crate::reduce::anchors::{Anchors, ranking};
use crate::reduce::share::Share;
use crate::text::step::last_row;

/// Parameters of the reduction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanguageReduction {
    /// Number of first layers that process all tokens: at least 1 and fewer than the model has. The
    /// last of them ranks the tokens.
    pub layer: usize,
    /// Share of the tokens that the other layers process. It applies to all tokens of media in a
    /// prompt together; those of earlier turns, which are in the state already, are not counted.
    pub share: Share,
}

impl fmt::Display for LanguageReduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.layer, self.share)
    }
}

impl FromStr for LanguageReduction {
    type Err = ();

    /// Parses `LAYER:RATIO`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (layer, share) = text.split_once(':').ok_or(())?;
        let layer = layer.parse().map_err(|_| ())?;
        let share = share.parse()?;
        (layer > 0).then_some(Self { layer, share }).ok_or(())
    }
}

impl LanguageReduction {
    /// Checks that `model` can process fewer tokens in its later layers.
    ///
    /// # Errors
    /// [`ModelError::LanguageReduction`] if it cannot.
    pub fn check<B: KernelBackend>(&self, model: &dyn LanguageModel<B>) -> Result<(), ModelError> {
        let refused = |reason: String| Err(ModelError::LanguageReduction(reason));
        let layers = model.decoder_layers().ok_or_else(unsupported)?.layers();
        if !(1..layers).contains(&self.layer) {
            return refused(match layers {
                1 => "the model has only one layer, so none would process fewer tokens".to_owned(),
                _ => format!(
                    "found layer {}, expected 1 to {}: the model has {layers} layers",
                    self.layer,
                    layers - 1
                ),
            });
        }
        Ok(())
    }
}

/// The error of a model whose layers cannot be run in parts.
pub(crate) fn unsupported() -> ModelError {
    ModelError::LanguageReduction(
        "this model does not support it: expected a decoder-only model without recurrent layers; \
         leave the reduction out"
            .to_owned(),
    )
}

/// Tokens of a sequence that only the first layers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Number of layers that hold them.
    pub layer: usize,
    /// Indices of the tokens in the sequence, ascending.
    pub tokens: Vec<usize>,
    /// End of the last prompt of which tokens were dropped. The choice depends on its last token, so
    /// the state cannot go back to fewer tokens than this.
    pub end: usize,
}

/// Reduction of the tokens of an input.
#[derive(Debug, Clone)]
pub enum StepReduction {
    /// Keeps the tokens that the last token attends to most.
    Choose {
        /// The parameters.
        reduction: LanguageReduction,
        /// Tokens that may be dropped: disjoint ranges, ascending.
        media: Vec<Range<usize>>,
        /// Tokens among these that are kept in any case, at most as many as the reduction keeps.
        anchors: Vec<usize>,
    },
    /// Drops the same tokens as before, to compute a sequence anew.
    Repeat(Dropped),
}

impl StepReduction {
    /// Creates a reduction of the tokens in `media`, disjoint ascending ranges of the tokens at
    /// `positions`. Among the tokens to keep, `anchors` are protected: the best of each range, in
    /// proportion to its length.
    ///
    /// # Errors
    /// If anchors are to be protected in a model without rotary embeddings.
    pub fn choose<B: KernelBackend>(
        reduction: LanguageReduction,
        media: Vec<Range<usize>>,
        anchors: Option<Anchors>,
        positions: &[Position],
        model: &dyn LanguageModel<B>,
    ) -> Result<Self, ModelError> {
        let mut protected = Vec::new();
        if let Some(anchors) = anchors {
            let mut ranked = Vec::new();
            for range in &media {
                let means = model.rotary_means(&positions[range.clone()]);
                let means = means.ok_or(ModelError::NoRotary)?;
                let share = |rank: usize| (rank as f64 + 0.5) / range.len() as f64;
                let of_range = ranking(&means).into_iter().enumerate();
                ranked.extend(of_range.map(|(rank, token)| (share(rank), range.start + token)));
            }
            ranked.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            let count = anchors.of(reduction.share.of(count(&media)));
            protected = ranked.into_iter().map(|(_, token)| token).collect();
            protected.truncate(count);
        }
        Ok(Self::Choose {
            reduction,
            media,
            anchors: protected,
        })
    }

    fn layer(&self) -> usize {
        match self {
            Self::Choose { reduction, .. } => reduction.layer,
            Self::Repeat(dropped) => dropped.layer,
        }
    }

    /// Returns the number of tokens that will be dropped.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Choose {
                reduction, media, ..
            } => {
                let tokens = media.iter().map(Range::len).sum();
                tokens - reduction.share.of(tokens)
            }
            Self::Repeat(dropped) => dropped.tokens.len(),
        }
    }
}

/// The layers of a decoder-only model, to be run in parts.
pub trait DecoderLayers<B: KernelBackend> {
    /// Returns the number of layers.
    fn layers(&self) -> usize;

    /// Returns the sliding window of a layer, in tokens.
    fn window(&self, _layer: usize) -> Option<usize> {
        None
    }

    /// Returns the input of the first layer: `[tokens, hidden_size]`.
    fn enter(&self, input: &StepInput<'_, B>) -> Tensor<B, 2> {
        input.embeddings.clone()
    }

    /// Runs `layers` over `x`, the hidden states of the tokens of `input` before them, and appends
    /// the tokens to these layers of the cache. The last layer of the model returns only the rows
    /// that `input` asks for.
    ///
    /// # Shapes
    /// - x: `[tokens, hidden_size]`, result: `[tokens, hidden_size]` or `[1, hidden_size]`
    ///
    /// # Errors
    /// If `monitor` cancels; the state is then unchanged.
    fn run(
        &self,
        x: Tensor<B, 2>,
        input: &StepInput<'_, B>,
        layers: Range<usize>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError>;

    /// Returns the attention weights of a token for the positions `keys` of a layer of the cache, in
    /// the mean over the heads.
    ///
    /// # Shapes
    /// - x: `[1, hidden_size]`, the token's hidden state before the layer; result: `[1, keys.len()]`
    fn attention_row(
        &self,
        layer: usize,
        x: Tensor<B, 2>,
        position: Position,
        keys: Range<usize>,
        state: &DecoderState<B>,
    ) -> Tensor<B, 2>;

    /// Returns the hidden states that are scored: the last layer's output after the final norm.
    fn finish(&self, x: Tensor<B, 2>) -> Tensor<B, 2>;
}

/// Computes `input` in two passes and drops tokens between them. Both proceed in chunks of about
/// `chunk` tokens. Returns the hidden states that the input asks for, of the tokens that are left.
///
/// # Errors
/// If the state lacks tokens from another layer on, the device fails or `monitor` cancels. The state
/// then has as many tokens as before.
pub(crate) fn prefill<B: KernelBackend>(
    model: &dyn DecoderLayers<B>,
    input: StepInput<'_, B>,
    reduction: &StepReduction,
    chunk: usize,
    state: &mut DecoderState<B>,
    monitor: &mut Monitor<'_>,
) -> Result<Tensor<B, 2>, ModelError> {
    let layer = reduction.layer();
    if let Some(held) = state.dropped.as_ref().filter(|held| held.layer != layer) {
        return Err(ModelError::LanguageReduction(format!(
            "found layer {layer}, expected {}, from which on the state lacks tokens: compute the \
             conversation anew",
            held.layer
        )));
    }
    let (past, tokens) = (state.len(), input.len());
    let before: Vec<usize> = (0..model.layers()).map(|i| state.cache.len_of(i)).collect();
    let mut passes = Passes {
        model,
        reduction,
        chunk,
        state,
        monitor,
    };
    match passes.run(input) {
        Ok((hidden, new)) => {
            let held = state.dropped.take().map(|held| held.tokens);
            let new = new.into_iter().map(|token| past + token);
            state.dropped = Some(Dropped {
                layer,
                tokens: held.into_iter().flatten().chain(new).collect(),
                end: match reduction {
                    StepReduction::Choose { .. } => past + tokens,
                    StepReduction::Repeat(dropped) => dropped.end,
                },
            });
            Ok(hidden)
        }
        Err(error) => {
            for (layer, &len) in before.iter().enumerate() {
                state.cache.truncate_layers(layer..layer + 1, len);
            }
            Err(error)
        }
    }
}

/// Operands of both passes.
struct Passes<'p, 'm, B: KernelBackend> {
    model: &'p dyn DecoderLayers<B>,
    reduction: &'p StepReduction,
    chunk: usize,
    state: &'p mut DecoderState<B>,
    monitor: &'p mut Monitor<'m>,
}

/// Result of the first pass.
struct Ranked<B: KernelBackend> {
    /// Hidden states of all tokens, in chunks.
    hidden: Vec<Tensor<B, 2>>,
    /// Input of the last token to the layer that ranks.
    last: Tensor<B, 2>,
    /// Keys that the last token attends to.
    keys: Range<usize>,
}

impl<B: KernelBackend> Passes<'_, '_, B> {
    /// Returns the hidden states, and the indices of the tokens that were dropped.
    fn run(
        &mut self,
        mut input: StepInput<'_, B>,
    ) -> Result<(Tensor<B, 2>, Vec<usize>), ModelError> {
        let Some(&position) = input.positions.last() else {
            return Err(ModelError::Prompt("it is empty".to_owned()));
        };
        let (layer, layers) = (self.reduction.layer(), self.model.layers());
        let bounds = input.bounds(self.chunk);
        let left = input.len() - self.reduction.count();
        let steps = (bounds.len() - 1) * layer;
        let total = steps + left.div_ceil(self.chunk) * (layers - layer);

        let Ranked { hidden, last, keys } = self.first_pass(&input, &bounds, total)?;
        let dropped = match self.reduction {
            StepReduction::Repeat(dropped) => dropped.tokens.clone(),
            StepReduction::Choose {
                reduction,
                media,
                anchors,
            } => {
                let mut weights = self.weights(last.clone(), position, keys, input.len())?;
                for &token in anchors {
                    weights[token] = weights[token].max(f32::MAX);
                }
                let kept = reduction.share.of(count(media));
                least_attended(media, kept, |token| weights[token])
            }
        };
        capture_dropped(&dropped);
        let kept = others(input.len(), &dropped);
        // Frees the embeddings before the rows are copied.
        input.embeddings = last;
        input.embeddings = rows_at(hidden, &kept);
        let hidden = self.second_pass(&input, &kept, steps, total)?;
        Ok((hidden, dropped))
    }

    /// Returns the weight of each of the `tokens` tokens of the input in the attention of the last
    /// one, which attends to the positions `keys`.
    fn weights(
        &self,
        last: Tensor<B, 2>,
        position: Position,
        keys: Range<usize>,
        tokens: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let (rank, first) = (self.reduction.layer() - 1, keys.start);
        let row = self
            .model
            .attention_row(rank, last, position, keys, self.state);
        let row = row.try_into_data();
        let row = row.map_err(|error| ModelError::Compute(error.to_string()))?;
        let row: Vec<f32> = row.into_vec().expect("attention weights are f32");
        let past = self.state.cache.len_of(rank) - tokens;
        // Tokens before the window of the layer are not attended to.
        let weight = |key: usize| key.checked_sub(first).map_or(0.0, |key| row[key]);
        let mut weights: Vec<f32> = (past..past + tokens).map(weight).collect();
        // The output of the last token is needed.
        weights[tokens - 1] = f32::INFINITY;
        Ok(weights)
    }

    /// Runs the first layers over all tokens.
    fn first_pass(
        &mut self,
        input: &StepInput<'_, B>,
        bounds: &[usize],
        total: usize,
    ) -> Result<Ranked<B>, ModelError> {
        let (layer, rank) = (self.reduction.layer(), self.reduction.layer() - 1);
        let (model, state) = (self.model, &mut *self.state);
        let mut hidden = Vec::with_capacity(bounds.len());
        let mut seen = None;
        for (i, bounds) in bounds.windows(2).enumerate() {
            let chunk = input.part(bounds[0]..bounds[1]);
            let x = model.enter(&chunk);
            let done = i * layer;
            let x = self.monitor.part(done, total, |monitor| {
                model.run(x, &chunk, 0..rank, state, monitor)
            })?;
            let past = state.cache.len_of(rank);
            let visible = chunk.visible(past, model.window(rank));
            let keys = visible.and_then(|ranges| ranges.last().cloned());
            seen = Some((
                last_row(chunk.inject(rank, x.clone())),
                keys.unwrap_or(0..past + chunk.len()),
            ));
            hidden.push(self.monitor.part(done + rank, total, |monitor| {
                model.run(x, &chunk, rank..layer, state, monitor)
            })?);
        }
        let (last, keys) = seen.expect("there is a token");
        Ok(Ranked { hidden, last, keys })
    }

    /// Runs the other layers over the tokens at `kept`, whose hidden states are the embeddings of
    /// `input`.
    fn second_pass(
        &mut self,
        input: &StepInput<'_, B>,
        kept: &[usize],
        steps: usize,
        total: usize,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let layers = self.reduction.layer()..self.model.layers();
        let positions: Vec<Position> = kept.iter().map(|&token| input.positions[token]).collect();
        let input = input.keep(kept, &positions);
        let (model, state) = (self.model, &mut *self.state);
        let mut hidden = Vec::new();
        for (i, bounds) in input.bounds(self.chunk).windows(2).enumerate() {
            let chunk = input.part(bounds[0]..bounds[1]);
            let done = steps + i * layers.len();
            let x = chunk.embeddings.clone();
            let rows = self.monitor.part(done, total, |monitor| {
                model.run(x, &chunk, layers.clone(), state, monitor)
            })?;
            if input.output == OutputRows::Last {
                hidden.clear();
            }
            hidden.push(model.finish(rows));
        }
        Ok(Tensor::cat(hidden, 0))
    }
}

fn count(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(Range::len).sum()
}

/// Returns the tokens of `media` other than the `kept` of the largest weight, ascending. Of equal
/// weights the first ones are kept.
fn least_attended(
    media: &[Range<usize>],
    kept: usize,
    weight: impl Fn(usize) -> f32,
) -> Vec<usize> {
    let mut tokens: Vec<usize> = media.iter().cloned().flatten().collect();
    // The sort is stable, and the tokens ascend.
    tokens.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
    let mut dropped = tokens.split_off(kept.min(tokens.len()));
    dropped.sort_unstable();
    dropped
}

/// Captures the indices of the dropped tokens in the input.
fn capture_dropped(dropped: &[usize]) {
    let values: Vec<f32> = dropped.iter().map(|&token| token as f32).collect();
    probe::capture_values("language_dropped", &[values.len()], &values);
}

/// Returns the numbers below `len` that are not in `dropped`, which ascends.
fn others(len: usize, dropped: &[usize]) -> Vec<usize> {
    let is_left = |token: &usize| dropped.binary_search(token).is_err();
    (0..len).filter(is_left).collect()
}

/// Returns the rows at the ascending indices `kept` of chunks that follow each other.
fn rows_at<B: KernelBackend>(chunks: Vec<Tensor<B, 2>>, kept: &[usize]) -> Tensor<B, 2> {
    let mut first = 0;
    let mut parts = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let end = first + chunk.dims()[0];
        let within = |bound: usize| kept.partition_point(|&token| token < bound);
        let rows = kept[within(first)..within(end)].iter();
        let rows: Vec<u32> = rows.map(|token| (token - first) as u32).collect();
        if !rows.is_empty() {
            parts.push(select_rows(chunk, &rows));
        }
        first = end;
    }
    Tensor::cat(parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_tokens_stay() {
        let weights = [9.0, 0.2, 0.5, 9.0, 0.5, 0.1, 0.5];
        let dropped = least_attended(&[1..3, 4..7], 2, |token| weights[token]);
        assert_eq!(dropped, [1, 5, 6]);
        assert_eq!(others(7, &dropped), [0, 2, 3, 4]);
        let all = least_attended(&[1..3, 4..7], 5, |token| weights[token]);
        assert!(all.is_empty());
    }
}
