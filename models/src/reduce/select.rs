//! Choice of tokens after the projector.

use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;

use super::anchors::{best, ranking, ranks};
use super::diverse::diverse;
use super::plan::{Reduction, Reductions};
use super::question::relevant;
use super::rows::indices;
use super::sampling::{largest, random, stride};
use super::share::Share;
use crate::error::ModelError;
use crate::language::LanguageModel;
use crate::layout::Position;
use crate::media::{MediaKind, MediaOptions};
use crate::model::Encoded;
use crate::monitor::Monitor;

/// Properties of the prompt that choices of tokens depend on.
#[derive(Debug, Clone, Copy)]
pub struct PromptContext<'a, B: KernelBackend> {
    /// Embeddings of the question's tokens, for [`Reduction::Question`]; `None` if there are none.
    pub question: Option<&'a Tensor<B, 2>>,
    /// Position of each token of the medium in the prompt.
    pub positions: &'a [Position],
}

/// Applies the methods after the projector that do not depend on the prompt
/// ([`Reductions::before_prompt`]) to an encoded image or video; sounds are not reduced.
///
/// # Errors
/// If the family does not support a method before or within its encoder, or does not report the
/// attention that a method needs, or `monitor` cancels.
pub fn select<B: KernelBackend>(
    encoded: Encoded<B>,
    kind: MediaKind,
    options: &MediaOptions,
    monitor: &mut Monitor<'_>,
) -> Result<Encoded<B>, ModelError> {
    if kind == MediaKind::Audio {
        return Ok(encoded);
    }
    for method in options.reductions.methods() {
        let done = |name| encoded.steps.iter().any(|step| step.method == name);
        let applies = match method {
            Reduction::Duplicates(_) | Reduction::Merge(_) => true,
            Reduction::Still(_) => kind == MediaKind::Video,
            _ => false,
        };
        if applies && !done(method.name()) {
            return Err(ModelError::CannotReduce {
                method: method.name(),
            });
        }
    }
    let choice = Choice {
        encoded,
        seed: options.seed,
        question: None,
        anchors: None,
    };
    choice.run(&options.reductions.before_prompt(), monitor)
}

/// Applies the methods after the projector that depend on the prompt ([`Reductions::of_prompt`]) to
/// the result of [`select`].
///
/// # Errors
/// If the encoder does not report the attention that a method needs, anchors are to be protected in
/// a model without rotary embeddings, or `monitor` cancels.
pub fn select_for_prompt<B: KernelBackend>(
    encoded: Encoded<B>,
    kind: MediaKind,
    options: &MediaOptions,
    prompt: PromptContext<'_, B>,
    language: &dyn LanguageModel<B>,
    monitor: &mut Monitor<'_>,
) -> Result<Encoded<B>, ModelError> {
    if kind == MediaKind::Audio {
        return Ok(encoded);
    }
    let methods = options.reductions.of_prompt();
    let anchors = match methods.anchors() {
        None => None,
        Some(anchors) => {
            let means = language.rotary_means(prompt.positions);
            let means = means.ok_or(ModelError::NoRotary)?;
            Some((anchors, ranks(&ranking(&means))))
        }
    };
    let choice = Choice {
        encoded,
        seed: options.seed,
        question: prompt.question,
        anchors,
    };
    choice.run(&methods, monitor)
}

/// A medium of which tokens are chosen by one method after the other.
struct Choice<'a, B: KernelBackend> {
    encoded: Encoded<B>,
    seed: u64,
    question: Option<&'a Tensor<B, 2>>,
    /// Anchors to protect, and the rank of each token that is left.
    anchors: Option<(super::Anchors, Vec<usize>)>,
}

impl<B: KernelBackend> Choice<'_, B> {
    fn run(
        mut self,
        methods: &Reductions,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        for method in methods.methods() {
            let Some(share) = method.chosen_share() else {
                continue;
            };
            let [tokens, _] = self.encoded.features.dims();
            let count = share.of(tokens);
            // A ratio of 1 needs no scores.
            let kept = match share == Share::ALL {
                true => (0..tokens).collect(),
                false => self.choose(method, count, monitor)?,
            };
            if kept.len() < tokens {
                self.keep(&kept);
            }
            self.encoded.steps.push(method.left(kept.len()));
        }
        Ok(self.encoded)
    }

    /// Returns the `count` tokens that a method keeps, sorted.
    fn choose(
        &self,
        method: &Reduction,
        count: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Vec<usize>, ModelError> {
        let features = &self.encoded.features;
        let [tokens, _] = features.dims();
        let first = match &self.anchors {
            Some((anchors, ranks)) => best(ranks, anchors.of(count)),
            None => Vec::new(),
        };
        let others = |pick: &dyn Fn(usize, usize) -> Vec<usize>| {
            let rest: Vec<usize> = (0..tokens).filter(|token| !first.contains(token)).collect();
            let chosen = pick(rest.len(), count - first.len()).into_iter();
            let mut kept: Vec<usize> = chosen.map(|i| rest[i]).chain(first.clone()).collect();
            kept.sort_unstable();
            kept
        };
        Ok(match method {
            Reduction::Diverse(_) => diverse(features, count, &first, monitor)?,
            Reduction::Question(_) => relevant(features, self.question, count, &first, monitor)?,
            Reduction::Random(_) => others(&|tokens, count| random(tokens, count, self.seed)),
            Reduction::Stride(_) => others(&stride),
            _ => {
                let received = self.encoded.attention.clone();
                let mut received = received.ok_or(ModelError::NoAttention)?;
                first
                    .iter()
                    .for_each(|&token| received[token] = f32::INFINITY);
                largest(&received, count)
            }
        })
    }

    /// Drops all tokens but `kept`.
    fn keep(&mut self, kept: &[usize]) {
        let encoded = &mut self.encoded;
        let rows = indices(kept, &encoded.features.device());
        encoded.layout = encoded.layout.keep(kept);
        encoded.features = encoded.features.clone().select(0, rows.clone());
        for (_, features) in &mut encoded.deep {
            *features = features.clone().select(0, rows.clone());
        }
        if let Some(received) = &mut encoded.attention {
            *received = kept.iter().map(|&token| received[token]).collect();
        }
        if let Some((_, ranks)) = &mut self.anchors {
            *ranks = kept.iter().map(|&token| ranks[token]).collect();
        }
    }
}
