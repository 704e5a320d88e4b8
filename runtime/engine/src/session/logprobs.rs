//! Log-probabilities of the tokens of an answer.

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The id.
    pub id: u32,
    /// Bytes that it adds to the text; they may end inside a UTF-8 character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Log-probabilities at one position of an answer: the softmax of the model's scores, before
/// penalties, temperature and other limits of the choice.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token of the answer.
    pub token: ScoredToken,
    /// The most likely tokens, best first.
    pub top: Vec<ScoredToken>,
}

impl TokenLogprobs {
    /// Computes them from all scores; `bytes` returns the bytes of a token.
    pub(super) fn new(
        scores: &[f32],
        id: u32,
        count: usize,
        bytes: impl Fn(u32) -> Vec<u8>,
    ) -> Self {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = scores.iter().map(|s| f64::from(s - max).exp()).sum();
        let log_total = total.ln();
        let scored = |id: u32| {
            let score = scores.get(id as usize).copied();
            let score = score.unwrap_or(f32::NEG_INFINITY);
            ScoredToken {
                id,
                bytes: bytes(id),
                logprob: (f64::from(score - max) - log_total) as f32,
            }
        };
        Self {
            token: scored(id),
            top: best(scores, count).into_iter().map(scored).collect(),
        }
    }
}

/// Returns the ids of the `count` largest scores, best first; among equal ones, the lower id.
fn best(scores: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, score) in (0..).zip(scores.iter().copied()) {
        if best.len() == count && best.last().is_none_or(|last| score <= last.1) {
            continue;
        }
        let at = best.partition_point(|held| held.1 >= score);
        best.insert(at, (id, score));
        best.truncate(count);
    }
    best.into_iter().map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_are_in_order() {
        let scores = [1.0, 3.0, 3.0, -2.0];
        let logprobs = TokenLogprobs::new(&scores, 0, 4, |id| vec![id as u8]);
        let total: f32 = logprobs.top.iter().map(|token| token.logprob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        let ids: Vec<u32> = logprobs.top.iter().map(|token| token.id).collect();
        assert_eq!(ids, [1, 2, 0, 3]);
        assert_eq!(logprobs.token, logprobs.top[2]);
        let expected = -(1.0f32 + 2.0 * 2f32.exp() + (-3f32).exp()).ln();
        assert!((logprobs.token.logprob - expected).abs() < 1e-6);
        assert!(
            TokenLogprobs::new(&scores, 1, 0, |_| Vec::new())
                .top
                .is_empty()
        );
    }
}
