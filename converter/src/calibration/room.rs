//! Memory of the samples while they pass through the model together.

use edge_lmm_models::weights::Part;

use super::Method;
use super::example::ExampleSize;
use super::objective::memory_of_sums;
use super::samples::spread;
use crate::plan::Plan;

/// How many samples fit into memory at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes for the samples.
    bytes: usize,
    /// Bytes of a token in the language model.
    token: usize,
    /// Bytes of a row in an encoder.
    row: usize,
}

impl Room {
    /// Returns what is left of `memory` bytes beside the statistics of the widest weight.
    pub fn new(plan: &Plan, method: Method, memory: usize) -> Self {
        // A method that compares with the float model runs each sample twice.
        let models = if method == Method::Best { 2 } else { 1 };
        let of = |parts: &[Part]| {
            let (mut widest, mut keys) = (0, 0);
            for weight in plan.weights.iter().filter(|weight| weight.spec.product) {
                if !parts.contains(&weight.spec.part) {
                    continue;
                }
                let width = weight.spec.cols();
                widest = widest.max(width);
                // Keys and values are in the outputs of an attention's first layer.
                if weight.spec.name.contains("qkv") {
                    keys += weight.spec.rows().saturating_sub(width);
                }
            }
            models * size_of::<f32>() * (3 * widest + keys)
        };
        Self {
            bytes: memory.saturating_sub(sums(plan, method, memory)),
            token: of(&[Part::Text]).max(1),
            // An encoder keeps no keys.
            row: of(&[Part::Vision, Part::Audio]),
        }
    }

    /// Returns the number of tokens that fit.
    pub fn tokens(&self) -> usize {
        self.bytes / self.token
    }

    /// Returns the number of tokens that take as much memory as an example, whose encoder works
    /// before the language model.
    pub fn tokens_of(&self, size: ExampleSize) -> usize {
        let encoder = size.encoder_rows.saturating_mul(self.row);
        size.tokens.max(encoder.div_ceil(self.token))
    }
}

/// Returns examples at equal distances that take at most as many tokens in all as there is room for,
/// but at least one, with their tokens. Each example comes with its own.
pub(super) fn fitting<T: Clone>(examples: &[(T, usize)], most: usize) -> (Vec<T>, usize) {
    let mut count = examples.len();
    loop {
        let chosen = spread(examples, count);
        let tokens: usize = chosen.iter().map(|(_, tokens)| tokens).sum();
        if tokens <= most || count <= 1 {
            return (
                chosen.into_iter().map(|(example, _)| example).collect(),
                tokens,
            );
        }
        count = (count * most / tokens).clamp(1, count - 1);
    }
}

/// Returns the bytes that a method needs for the sums of the widest weight.
fn sums(plan: &Plan, method: Method, memory: usize) -> usize {
    let quantized = plan.weights.iter().filter(|weight| weight.spec.product);
    let summed = quantized.filter(|weight| method.needs_products(weight, plan));
    let bytes = summed.map(|weight| memory_of_sums(weight.spec.cols(), memory));
    bytes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_examples_are_used_if_all_do_not_fit() {
        let examples: Vec<(usize, usize)> = (0..10).map(|i| (i, 100 + i)).collect();
        assert_eq!(fitting(&examples, 2000), ((0..10).collect(), 1045));
        let (chosen, tokens) = fitting(&examples, 500);
        assert_eq!((chosen, tokens), (vec![0, 2, 5, 7], 414));
        assert_eq!(fitting(&examples, 10), (vec![0], 100));
        assert_eq!(fitting::<usize>(&[], 10), (vec![], 0));
    }
}
