//! Logits processors: the interface, and those that a request or a user of the library asks for.

use std::fmt::Debug;

/// Changes the logits of the next token.
///
/// Logits are at most [`f32::MAX`]; [`f32::NEG_INFINITY`] excludes a token.
pub trait LogitsProcessor: Debug + Send {
    /// Changes the logits of the next token. `tokens` are all tokens so far, including the prompt
    /// (for an encoder-decoder, those of the decoder). From call to call, tokens are only appended.
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]);
}

/// Makes tokens of the answer less likely: a fixed amount if they have appeared, and an amount for
/// each time. These are `presence_penalty` and `frequency_penalty` of OpenAI's API.
#[derive(Debug)]
pub struct CountPenalty {
    presence: f32,
    frequency: f32,
    /// Tokens that are counted already; those of the prompt are not counted.
    read: usize,
    counts: Vec<u32>,
    distinct: Vec<u32>,
}

impl CountPenalty {
    /// Creates the penalties of an answer that begins after `prompt` tokens; 0 changes nothing, a
    /// negative penalty makes tokens more likely.
    pub fn new(presence: f32, frequency: f32, prompt: usize) -> Self {
        Self {
            presence,
            frequency,
            read: prompt,
            counts: Vec::new(),
            distinct: Vec::new(),
        }
    }
}

impl LogitsProcessor for CountPenalty {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        self.counts.resize(logits.len(), 0);
        for &id in tokens.get(self.read..).unwrap_or_default() {
            if let Some(count) = self.counts.get_mut(id as usize) {
                if *count == 0 {
                    self.distinct.push(id);
                }
                *count += 1;
            }
        }
        self.read = tokens.len().max(self.read);
        for &id in &self.distinct {
            let count = self.counts[id as usize] as f32;
            let penalty = self.presence + self.frequency * count;
            let logit = &mut logits[id as usize];
            *logit = (*logit - penalty.clamp(f32::MIN, f32::MAX)).min(f32::MAX);
        }
    }
}

/// Excludes all tokens except an allowed set.
#[derive(Debug, Clone)]
pub struct AllowedTokens(Vec<bool>);

impl AllowedTokens {
    /// Allows the tokens `ids` of a vocabulary.
    pub fn new(vocabulary: usize, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut allowed = vec![false; vocabulary];
        for id in ids {
            if let Some(allowed) = allowed.get_mut(id as usize) {
                *allowed = true;
            }
        }
        Self(allowed)
    }
}

impl LogitsProcessor for AllowedTokens {
    fn process(&mut self, logits: &mut [f32], _tokens: &[u32]) {
        let allowed = self.0.iter().copied().chain(std::iter::repeat(false));
        for (logit, allowed) in logits.iter_mut().zip(allowed) {
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_the_answer_are_counted() {
        let mut penalty = CountPenalty::new(0.5, 0.25, 2);
        let mut step = |tokens: &[u32]| {
            let mut logits = vec![1.0; 4];
            penalty.process(&mut logits, tokens);
            logits
        };
        assert_eq!(step(&[0, 1]), [1.0; 4]);
        assert_eq!(step(&[0, 1, 3]), [1.0, 1.0, 1.0, 0.25]);
        assert_eq!(step(&[0, 1, 3, 3, 9]), [1.0, 1.0, 1.0, 0.0]);
        assert_eq!(step(&[0, 1, 3, 3, 9, 0]), [0.25, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn extreme_penalties_leave_logits_defined() {
        for (presence, frequency) in [(f32::MAX, f32::MAX), (f32::MIN, f32::MIN)] {
            let mut penalty = CountPenalty::new(presence, frequency, 0);
            let mut logits = [f32::MAX, f32::MIN, f32::NEG_INFINITY];
            penalty.process(&mut logits, &[0, 1, 2, 2]);
            let defined = |logit: &f32| !logit.is_nan() && *logit < f32::INFINITY;
            assert!(logits.iter().all(defined), "{logits:?}");
        }
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let mut logits = [1.0; 5];
        AllowedTokens::new(4, [1, 3, 9]).process(&mut logits, &[]);
        let out = f32::NEG_INFINITY;
        assert_eq!(logits, [out, 1.0, out, 1.0, out]);
    }
}
