//! The parts of a step that language models share.

use std::any::Any;
use std::ops::Range;

use burn::tensor::Tensor;
use edge_lmm_ops::{Heads, KernelBackend, KvStore, Mask, attention_row, probe, stage};

use crate::error::ModelError;
use crate::language::{DecoderState, OutputRows, RecurrentState, StepInput};
use crate::layers::Linear;
use crate::monitor::Monitor;

/// Arguments of a layer that depend on its index and on the step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Index of the layer.
    pub layer: usize,
    /// Keys that each token attends to, if not all up to its own.
    pub visible: Option<&'a [Range<usize>]>,
    /// Computes only the last token after attention: the output of the others is not used.
    pub last_row: bool,
}

impl<'a> Place<'a> {
    /// Returns the mask of attention over the cache.
    pub fn mask(self) -> Mask<'a> {
        self.visible.map_or(Mask::Causal, Mask::Ranges)
    }

    /// Projects the result of attention with `out` and adds it to the residual `x`.
    pub fn close_attention<B: KernelBackend>(
        self,
        out: &Linear<B>,
        attended: Tensor<B, 2>,
        x: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (attended, x) = self.used_rows(attended, x);
        out.forward_residual(attended, x)
    }

    /// Returns the rows of the result of attention and of the residual that are used.
    pub fn used_rows<B: KernelBackend>(
        self,
        attended: Tensor<B, 2>,
        x: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match self.last_row {
            true => (last_row(attended), last_row(x)),
            false => (attended, x),
        }
    }
}

/// Runs the layers `range` of a decoder-only model over `x`, the hidden states of a step before them,
/// and adds the tokens to these layers of the cache. `window` returns the sliding window of a layer.
///
/// # Errors
/// If `monitor` cancels; the cache then has as many tokens as before.
pub(crate) fn run_layers<B: KernelBackend, L>(
    input: &StepInput<'_, B>,
    mut x: Tensor<B, 2>,
    (layers, range): (&[L], Range<usize>),
    window: impl Fn(usize) -> Option<usize>,
    cache: &mut B::KvCache,
    monitor: &mut Monitor<'_>,
    mut forward: impl FnMut(&L, Tensor<B, 2>, &mut B::KvCache, Place<'_>) -> Tensor<B, 2>,
) -> Result<Tensor<B, 2>, ModelError> {
    let _text = stage::scope(format_args!("text"));
    if range.start == 0 && !range.is_empty() {
        capture_last(&x);
    }
    for i in range.clone() {
        monitor.report(i - range.start, range.len())?;
        let _layer = stage::scope(format_args!("layers.{i}"));
        let last = i + 1 == layers.len();
        let visible = input.visible(cache.len_of(i), window(i));
        let place = Place {
            layer: i,
            visible: visible.as_deref(),
            last_row: last && input.output == OutputRows::Last,
        };
        x = forward(&layers[i], input.inject(i, x), cache, place);
        if !last {
            capture_last(&x);
        }
    }
    cache.advance_layers(range, input.len());
    Ok(x)
}

/// A layer of a step that continues several conversations by one token each.
pub(crate) struct Together<'a, 's, B: KernelBackend> {
    layer: usize,
    window: Option<usize>,
    states: &'a mut [&'s mut DecoderState<B>],
}

impl<B: KernelBackend> Together<'_, '_, B> {
    /// Returns the arguments of the layer that all conversations share.
    pub fn place(&self) -> Place<'static> {
        Place {
            layer: self.layer,
            visible: None,
            last_row: false,
        }
    }

    /// Lets every row of `qkv` attend to its own conversation. `attend` takes the number of the
    /// conversation, its row, its cache and its arguments of the layer, and returns one row.
    pub fn attend(
        &mut self,
        qkv: Tensor<B, 2>,
        attend: impl Fn(usize, Tensor<B, 2>, &mut B::KvCache, Place<'_>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (shared, window) = (self.place(), self.window);
        let rows = self.states.iter_mut().enumerate().map(|(i, state)| {
            let held = state.cache.len_of(shared.layer);
            let visible = window
                .filter(|&window| window <= held)
                .map(|window| held + 1 - window..held + 1);
            let place = Place {
                visible: visible.as_ref().map(std::slice::from_ref),
                ..shared
            };
            attend(i, qkv.clone().narrow(0, i, 1), &mut state.cache, place)
        });
        Tensor::cat(rows.collect(), 0)
    }
}

/// Runs all layers of a decoder-only model over `x`, one token of each of `states`, and adds the
/// tokens to their caches. `window` returns the sliding window of a layer.
pub(crate) fn run_together<B: KernelBackend, L>(
    mut x: Tensor<B, 2>,
    layers: &[L],
    window: impl Fn(usize) -> Option<usize>,
    states: &mut [&mut DecoderState<B>],
    forward: impl Fn(&L, Tensor<B, 2>, Together<'_, '_, B>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    assert_eq!(x.dims()[0], states.len(), "a token for every conversation");
    let _text = stage::scope(format_args!("text"));
    for (i, layer) in layers.iter().enumerate() {
        let _layer = stage::scope(format_args!("layers.{i}"));
        let together = Together {
            layer: i,
            window: window(i),
            states: &mut *states,
        };
        x = forward(layer, x, together);
    }
    for state in states {
        state.cache.advance_layers(0..layers.len(), 1);
    }
    x
}

/// States of the recurrent layers during a step, whose new values count when the step is complete.
pub(crate) struct Recurrences<'a, S> {
    before: &'a mut [Box<dyn RecurrentState>],
    after: Vec<S>,
}

impl<S: Any> Recurrences<'_, S> {
    /// Replaces the state of the next layer by what `step` returns with a result. `step` takes the state,
    /// and whether it is that of the first layer, whose tensors are captured.
    pub fn update<T>(&mut self, step: impl FnOnce(&S, bool) -> (T, S)) -> T {
        let before = self.before.get_mut(self.after.len());
        let before = before.and_then(|state| state.as_any_mut().downcast_ref::<S>());
        let (result, after) = step(
            before.expect("a state for every recurrent layer"),
            self.after.is_empty(),
        );
        self.after.push(after);
        result
    }
}

/// Runs all layers of a model of which some attend and the others have a state `S`. The index of `Place`
/// counts the layers with attention.
///
/// # Errors
/// If `monitor` cancels; the states are then as before.
pub(crate) fn run_mixed<B: KernelBackend, L, S: Any>(
    input: &StepInput<'_, B>,
    layers: &[L],
    state: &mut DecoderState<B>,
    monitor: &mut Monitor<'_>,
    mut forward: impl FnMut(
        &L,
        Tensor<B, 2>,
        &mut B::KvCache,
        &mut Recurrences<'_, S>,
        Place<'_>,
    ) -> Tensor<B, 2>,
) -> Result<Tensor<B, 2>, ModelError> {
    let _text = stage::scope(format_args!("text"));
    let mut states = Recurrences {
        before: &mut state.recurrent,
        after: Vec::new(),
    };
    let mut x = input.embeddings.clone();
    capture_last(&x);
    let visible = input.visible(state.cache.len(), None);
    for (i, layer) in layers.iter().enumerate() {
        monitor.report(i, layers.len())?;
        let _layer = stage::scope(format_args!("layers.{i}"));
        let last = i + 1 == layers.len();
        let place = Place {
            layer: i - states.after.len(),
            visible: visible.as_deref(),
            last_row: last && input.output == OutputRows::Last,
        };
        x = forward(
            layer,
            input.inject(i, x),
            &mut state.cache,
            &mut states,
            place,
        );
        if !last {
            capture_last(&x);
        }
    }
    let Recurrences { before, after } = states;
    let attending = layers.len() - after.len();
    for (state, after) in before.iter_mut().zip(after) {
        if let Some(state) = state.as_any_mut().downcast_mut::<S>() {
            *state = after;
        }
    }
    state.cache.advance_layers(0..attending, input.len());
    Ok(x)
}

/// Returns the attention weights of the token whose query `query` computes, for the positions `keys`
/// of a layer of the cache, in the mean over the heads: `[1, keys.len()]`. `scale` is the factor of
/// attention scores.
pub(crate) fn weights_of<B: KernelBackend>(
    (layer, heads): (usize, Heads),
    query: impl FnOnce() -> Tensor<B, 2>,
    cache: &B::KvCache,
    keys: Range<usize>,
    scale: f32,
) -> Tensor<B, 2> {
    let _text = stage::scope(format_args!("text"));
    let _layer = stage::scope(format_args!("layers.{layer}"));
    let _stage = stage::module("attention");
    attention_row::<B>(query(), heads, cache, layer, keys, scale)
}

/// Applies the final norm.
pub(crate) fn finish<B: KernelBackend>(
    norm: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    x: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let _text = stage::scope(format_args!("text"));
    let hidden = norm(x);
    capture_last(&hidden);
    hidden
}

/// Returns the usual factor of attention scores: `1 / sqrt(head_dim)`.
pub(crate) fn scale(heads: Heads) -> f32 {
    (heads.head_dim as f32).powf(-0.5)
}

/// Returns the last row of a step's hidden states.
pub(crate) fn last_row<B: KernelBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match x.dims()[0] {
        1 => x,
        tokens => x.narrow(0, tokens - 1, 1),
    }
}

/// Captures the last row of a layer's input.
pub(crate) fn capture_last<B: KernelBackend>(x: &Tensor<B, 2>) {
    if probe::active() {
        probe::capture("lm_hidden_last", &last_row(x.clone()));
    }
}
