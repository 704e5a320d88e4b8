//! Counts of units and tokens that are known before an encoder runs.

use super::merge::Merge;
use super::plan::{Reduction, ReductionStep, Reductions};
use crate::media::{InputReduction, MediaInput, MediaKind};

/// Size of an encoder's work on a preprocessed medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderSize {
    /// Units that enter the encoder, for each part of the medium. A unit attends to those of its
    /// part only: a slice of a video, a crop of an image.
    pub parts: Vec<usize>,
    /// Rows of a unit.
    pub rows: usize,
    /// Number of layers.
    pub layers: usize,
    /// `true` if the encoder can merge units.
    pub merges: bool,
    /// `true` if every unit that is left becomes a token.
    pub units_are_tokens: bool,
}

/// Counts of a medium at each stage of a chain of methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Units of each part that enter each layer of the encoder, and at last those that leave it.
    pub layers: Vec<Vec<usize>>,
    /// Number left after each method before and within the encoder and after the projector.
    pub steps: Vec<ReductionStep>,
    /// Tokens that enter the language model.
    pub tokens: usize,
}

impl EncoderSize {
    /// Describes a medium whose parts have `units` units each before any of them is dropped.
    pub fn of_parts(reduction: &InputReduction, count: usize, units: usize) -> Self {
        let parts = match &reduction.units {
            None => vec![units; count],
            Some(entering) => {
                let mut parts = vec![0; count];
                entering.iter().for_each(|unit| parts[unit / units] += 1);
                parts.retain(|&units| units > 0);
                parts
            }
        };
        Self {
            parts,
            rows: 1,
            layers: 1,
            merges: true,
            units_are_tokens: true,
        }
    }

    /// Returns the counts of a medium of this size under the chain `methods`. Those before the
    /// encoder have been applied to `medium` already.
    ///
    /// Merging within small windows may leave more units than scheduled where the windows run out
    /// of pairs.
    pub fn schedule(&self, medium: &MediaInput, methods: &Reductions) -> Schedule {
        if medium.kind == MediaKind::Audio {
            return Schedule {
                layers: vec![self.parts.clone(); self.layers + 1],
                steps: Vec::new(),
                tokens: medium.tokens(),
            };
        }
        let layers = self.merged(methods.merge());
        let left = |at: usize| layers[at].iter().sum::<usize>();
        let mut tokens = match self.units_are_tokens {
            true => medium.tokens() - (left(0) - left(self.layers)),
            false => medium.tokens(),
        };
        let mut steps = medium.reduction.steps.clone();
        for method in methods.methods() {
            if let Reduction::Merge(_) = method {
                steps.push(method.left(left(self.layers)));
            }
            if let Some(share) = method.chosen_share() {
                tokens = share.of(tokens);
                steps.push(method.left(tokens));
            }
        }
        Schedule {
            layers,
            steps,
            tokens,
        }
    }

    /// Returns the units of each part before each layer and after the last one. A layer merges at
    /// most half of the units.
    fn merged(&self, merge: Option<Merge>) -> Vec<Vec<usize>> {
        let mut layers = vec![self.parts.clone()];
        for layer in 0..self.layers {
            let of_part = |(&first, &now): (&usize, &usize)| match merge {
                Some(merge) => merge.left(first, layer, self.layers).clamp(now / 2, now),
                None => now,
            };
            let before = &layers[layer];
            layers.push(self.parts.iter().zip(before).map(of_part).collect());
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Run;

    fn medium(tokens: usize) -> MediaInput {
        MediaInput {
            kind: MediaKind::Image,
            values: Vec::new(),
            shape: Vec::new(),
            grid: [0; 3],
            layout: Run::sequence(tokens).into(),
            reduction: InputReduction::default(),
            piece: None,
        }
    }

    fn schedule(tokens: usize, size: &EncoderSize, chain: &str) -> Schedule {
        let chain = chain.parse().expect("a chain");
        size.schedule(&medium(tokens), &chain)
    }

    /// A class token beside 64 units; the schedule of merging is that of the reference.
    #[test]
    fn counts_follow_the_chain() {
        let size = EncoderSize {
            parts: vec![64],
            rows: 4,
            layers: 5,
            merges: true,
            units_are_tokens: true,
        };
        let found = schedule(65, &size, "merge:0.5,diverse:0.5,language:2:0.1");
        let layers: Vec<usize> = found.layers.iter().map(|parts| parts[0]).collect();
        assert_eq!(layers, [64, 56, 49, 42, 37, 32]);
        let steps: Vec<usize> = found.steps.iter().map(|step| step.tokens).collect();
        assert_eq!((steps, found.tokens), (vec![32, 17], 17));
    }

    /// One layer halves the units at most; later layers go on.
    #[test]
    fn a_layer_merges_at_most_half() {
        let size = EncoderSize {
            parts: vec![9, 3],
            rows: 1,
            layers: 3,
            merges: true,
            units_are_tokens: false,
        };
        let found = schedule(32, &size, "merge:0.1:1");
        assert_eq!(found.layers, [[9, 3], [4, 1], [2, 1], [1, 1]]);
        assert_eq!((found.steps[0].tokens, found.tokens), (2, 32));
    }

    #[test]
    fn units_that_do_not_enter_are_not_counted() {
        let mut medium = medium(5);
        medium.reduction.units = Some(vec![0, 1, 9, 10, 11]);
        assert_eq!(EncoderSize::of_parts(&medium.reduction, 3, 4).parts, [2, 3]);
    }
}
