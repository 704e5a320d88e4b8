//! Picks the next token from the scores.

use std::cmp::Ordering;

use edge_lmm_ops::slice_argmax;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::constraint::{ConstraintError, Matching};
use crate::processors::LogitsProcessor;

/// Options for picking the next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divisor of the scores; 0 always picks the best token.
    pub temperature: f32,
    /// Considers only the best `top_k` tokens (0: all).
    pub top_k: usize,
    /// Considers only the best tokens that together have this probability.
    pub top_p: f32,
    /// Considers only tokens with at least this share of the best token's probability
    /// (min-p sampling, [arXiv:2407.01082](https://arxiv.org/abs/2407.01082)); 0 is off.
    pub min_p: f32,
    /// Start of the random sequence; the same seed gives the same answer.
    pub seed: u64,
    /// Penalty that makes earlier tokens less likely; 1 is off. `None` uses the checkpoint's
    /// penalty.
    pub repetition_penalty: Option<f32>,
    /// Amount subtracted from the logits of tokens that the answer contains; 0 is off.
    pub presence_penalty: f32,
    /// Amount subtracted from a token's logit for each of its occurrences in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Ignores the checkpoint's `generation_config.json` if `true`.
    pub ignore_generation_config: bool,
}

impl Default for Sampling {
    /// Returns greedy sampling.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            ignore_generation_config: false,
        }
    }
}

/// Error of a setting that is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
pub struct SamplingError {
    /// Name of the setting.
    pub name: &'static str,
    /// Value found.
    pub found: f32,
    /// The range.
    pub expected: &'static str,
}

impl Sampling {
    /// Checks the ranges of all settings.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), SamplingError> {
        let positive = "a number above 0";
        let penalty = "a number from -100 to 100";
        let in_range = |penalty: f32| (-100.0..=100.0).contains(&penalty);
        let repetition = self.repetition_penalty.unwrap_or(1.0);
        let settings = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "0 or more",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "more than 0, at most 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "0 to 1",
            ),
            (
                "repetition_penalty",
                repetition,
                is_penalty(repetition),
                positive,
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                in_range(self.presence_penalty),
                penalty,
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                in_range(self.frequency_penalty),
                penalty,
            ),
        ];
        match settings.into_iter().find(|setting| !setting.2) {
            None => Ok(()),
            Some((name, found, _, expected)) => Err(SamplingError {
                name,
                found,
                expected,
            }),
        }
    }

    /// Returns `true` if the best token is always picked.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }
}

/// Returns `true` if a repetition penalty is valid.
pub fn is_penalty(penalty: f32) -> bool {
    penalty > 0.0 && penalty.is_finite()
}

/// State of the token selection of one answer.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    processors: Vec<Box<dyn LogitsProcessor>>,
    constraint: Option<Matching>,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Creates a sampler that starts at the seed; `processors` change the scores in their order.
    pub fn new(sampling: Sampling, processors: Vec<Box<dyn LogitsProcessor>>) -> Self {
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self {
            sampling,
            processors,
            constraint: None,
            random,
        }
    }

    /// Picks only tokens that continue a text as `constraint` requires.
    #[must_use]
    pub(crate) fn with_constraint(mut self, constraint: Option<Matching>) -> Self {
        self.constraint = constraint;
        self
    }

    /// Returns `true` if the argmax of the unchanged logits is always picked.
    pub fn takes_argmax(&self) -> bool {
        self.sampling.is_greedy() && self.processors.is_empty() && self.constraint.is_none()
    }

    /// Picks the token that follows `tokens`; `None` if a score is not a number.
    ///
    /// # Errors
    /// If the constraint of the request cannot be followed.
    pub fn pick(&mut self, scores: &[f32], tokens: &[u32]) -> Result<Option<u32>, ConstraintError> {
        // The model's own scores are finite or it has overflowed; processors may exclude tokens.
        let best = slice_argmax(scores);
        if best.is_none() || self.takes_argmax() {
            return Ok(best);
        }
        let mut processed = scores.to_vec();
        for processor in &mut self.processors {
            processor.process(&mut processed, tokens);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(&mut processed, tokens)?;
            // The constraint has precedence over processors that exclude all the tokens it allows.
            if processed.iter().all(|&score| score == f32::NEG_INFINITY) {
                processed.copy_from_slice(scores);
                constraint.mask(&mut processed, tokens)?;
            }
        }
        Ok(self.choose(&processed))
    }

    /// Returns `true` if the constraint allows no token after `tokens`.
    ///
    /// # Errors
    /// As [`Self::pick`].
    pub(crate) fn is_complete(&mut self, tokens: &[u32]) -> Result<bool, ConstraintError> {
        match &mut self.constraint {
            Some(constraint) => constraint.is_complete(tokens),
            None => Ok(false),
        }
    }

    /// Picks a token by the processed scores.
    fn choose(&mut self, scores: &[f32]) -> Option<u32> {
        let mut candidates: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        if self.sampling.is_greedy() {
            let best = candidates
                .into_iter()
                .reduce(|best, next| if next.1 > best.1 { next } else { best });
            return best.map(|(id, _)| id);
        }
        if let k @ 1.. = self.sampling.top_k
            && k < candidates.len()
        {
            candidates.select_nth_unstable_by(k - 1, by_score);
            candidates.truncate(k);
        }
        self.draw(Ranking::new(candidates))
    }

    fn draw(&mut self, mut ranking: Ranking) -> Option<u32> {
        let (best, top) = ranking.get(0)?;
        // All are excluded.
        if top == f32::NEG_INFINITY {
            return Some(best);
        }
        let Sampling {
            temperature,
            top_p,
            min_p,
            ..
        } = self.sampling;
        let weight = |score: f32| f64::from((score - top) / temperature).exp();
        let scores = ranking.candidates.iter().map(|&(_, score)| score);
        let total: f64 = scores.map(weight).sum();
        let (mut count, mut nucleus) = (ranking.candidates.len(), total);
        if top_p < 1.0 || min_p > 0.0 {
            // The nucleus: the fewest best tokens whose probability reaches top_p.
            (count, nucleus) = (1, 1.0);
            while nucleus < f64::from(top_p) * total
                && let Some((_, score)) = ranking.get(count)
                && weight(score) >= f64::from(min_p)
            {
                nucleus += weight(score);
                count += 1;
            }
        }
        let mut rest = self.random.random::<f64>() * nucleus;
        for rank in 0..count {
            let (id, score) = ranking.get(rank)?;
            rest -= weight(score);
            if rest <= 0.0 {
                return Some(id);
            }
        }
        ranking.get(count - 1).map(|(id, _)| id)
    }
}

/// Orders candidates by falling score. Ties go to the lower id, so that the order is total.
fn by_score(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Tokens and their scores, sorted as far as they are asked for: a vocabulary has up to a quarter of a
/// million tokens, of which a draw needs a few.
struct Ranking {
    candidates: Vec<(u32, f32)>,
    sorted: usize,
}

impl Ranking {
    /// Candidates that are sorted first; then twice as many each time.
    const FIRST: usize = 64;

    fn new(candidates: Vec<(u32, f32)>) -> Self {
        Self {
            candidates,
            sorted: 0,
        }
    }

    /// Returns the candidate at a rank, 0 for the best one.
    fn get(&mut self, rank: usize) -> Option<(u32, f32)> {
        while rank >= self.sorted && self.sorted < self.candidates.len() {
            let rest = &mut self.candidates[self.sorted..];
            let count = self.sorted.max(Self::FIRST).min(rest.len());
            if count < rest.len() {
                rest.select_nth_unstable_by(count - 1, by_score);
            }
            rest[..count].sort_unstable_by(by_score);
            self.sorted += count;
        }
        self.candidates.get(rank).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Picks a token without a constraint.
    fn pick(sampler: &mut Sampler, scores: &[f32]) -> Option<u32> {
        sampler.pick(scores, &[]).expect("there is no constraint")
    }

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            seed: 7,
            ..Default::default()
        };
        Sampler::new(sampling, Vec::new())
    }

    /// Samples from all candidates in their order, without [`Ranking`].
    fn sample_sorted(sampler: &mut Sampler, scores: &[f32]) -> u32 {
        let mut candidates: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        candidates.sort_by(by_score);
        let Sampling {
            temperature,
            top_p,
            min_p,
            ..
        } = sampler.sampling;
        let weights = candidates
            .iter()
            .map(|&(_, score)| f64::from((score - candidates[0].1) / temperature).exp());
        let weights: Vec<f64> = weights.collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let kept = weights.iter().take_while(|&&weight| {
            let is_kept = sum < f64::from(top_p) * total && weight >= f64::from(min_p);
            sum += weight;
            is_kept
        });
        let kept: Vec<f64> = kept.copied().collect();
        let mut rest = sampler.random.random::<f64>() * kept.iter().sum::<f64>();
        let drawn = kept.iter().position(|weight| {
            rest -= weight;
            rest <= 0.0
        });
        candidates[drawn.unwrap_or(kept.len() - 1)].0
    }

    #[test]
    fn tokens_are_those_of_sorted_candidates() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for case in 0..300 {
            let size = [1, 63, 64, 65, 200, 5000][case % 6];
            let scores: Vec<f32> = (0..size).map(|_| random.random_range(-6.0..6.0)).collect();
            let sampling = Sampling {
                temperature: random.random_range(0.2..3.0),
                top_p: [1.0, 0.99, 0.5, 0.01][case % 4],
                min_p: [0.0, 0.0, 0.3][case % 3],
                seed: case as u64,
                ..Default::default()
            };
            let [mut ours, mut sorted] =
                [(); 2].map(|()| Sampler::new(sampling.clone(), Vec::new()));
            for _ in 0..4 {
                assert_eq!(
                    pick(&mut ours, &scores),
                    Some(sample_sorted(&mut sorted, &scores)),
                    "{sampling:?}, {size} tokens"
                );
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(
            pick(&mut sampler(0.0, 0, 1.0), &[0.0, 3.0, 3.0, -1.0]),
            Some(1)
        );
        assert_eq!(pick(&mut sampler(0.0, 0, 1.0), &[]), None);
        assert_eq!(pick(&mut sampler(0.0, 0, 1.0), &[1.0, f32::NAN]), None);
    }

    #[test]
    fn limits_keep_the_best() {
        let scores = [1.0, 5.0, 4.9, 0.0];
        for _ in 0..50 {
            assert_eq!(pick(&mut sampler(1.0, 1, 1.0), &scores), Some(1));
            assert_eq!(pick(&mut sampler(1.0, 0, 0.1), &scores), Some(1));
        }
        let mut both = sampler(1.0, 2, 1.0);
        let picks: Vec<_> = (0..200)
            .map(|_| pick(&mut both, &scores).unwrap())
            .collect();
        assert!(picks.iter().all(|id| [1, 2].contains(id)));
        assert!(picks.contains(&1) && picks.contains(&2));
    }

    #[test]
    fn unlikely_tokens_are_dropped() {
        let scores = [1.0, 5.0, 4.9, 0.0];
        let mut sampler = sampler(1.0, 0, 1.0);
        sampler.sampling.min_p = 0.5;
        let picks: Vec<_> = (0..200)
            .map(|_| pick(&mut sampler, &scores).unwrap())
            .collect();
        assert!(picks.iter().all(|id| [1, 2].contains(id)));
        assert!(picks.contains(&1) && picks.contains(&2));
        sampler.sampling.min_p = 1.0;
        assert!((0..50).all(|_| pick(&mut sampler, &scores) == Some(1)));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = Sampling::default();
        assert_eq!(good.check(), Ok(()));
        for (name, bad) in [
            (
                "temperature",
                Sampling {
                    temperature: f32::NAN,
                    ..good.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: 0.0,
                    ..good.clone()
                },
            ),
            (
                "min_p",
                Sampling {
                    min_p: 1.5,
                    ..good.clone()
                },
            ),
            (
                "repetition_penalty",
                Sampling {
                    repetition_penalty: Some(0.0),
                    ..good.clone()
                },
            ),
            (
                "presence_penalty",
                Sampling {
                    presence_penalty: f32::INFINITY,
                    ..good.clone()
                },
            ),
            (
                "frequency_penalty",
                Sampling {
                    frequency_penalty: -101.0,
                    ..good.clone()
                },
            ),
        ] {
            assert_eq!(bad.check().unwrap_err().name, name);
        }
    }

    /// 2000 draws of a token with probability 3/4: off by more than 5 standard deviations
    /// (0.0097 each) once in 1.7 million seeds, and the seed is fixed.
    #[test]
    fn frequencies_follow_the_scores() {
        let mut sampler = sampler(1.0, 0, 1.0);
        let scores = [3f32.ln(), 0.0];
        let hits = (0..2000)
            .filter(|_| pick(&mut sampler, &scores) == Some(0))
            .count();
        assert!((hits as f64 / 2000.0 - 0.75).abs() < 0.049, "{hits}");
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let scores: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = || {
            let mut sampler = sampler(0.8, 20, 0.9);
            (0..20)
                .map(|_| pick(&mut sampler, &scores))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
