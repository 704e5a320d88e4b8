//! Number of tokens to draft.

use super::Speculation;

/// Weights of a new time in a running mean, if it is shorter and if it is longer. Other work of the
/// machine only ever makes times longer.
const WEIGHTS: [f64; 2] = [0.3, 0.1];
/// Factor by which earlier drafts count less with each new one.
const FADE: f64 = 0.9;
/// Drafted tokens that the assumed acceptance counts as.
const PRIOR_TOKENS: f64 = 1.0;
/// Assumed times of a step of several tokens and of each of its further tokens, and of a token that a
/// model drafts, relative to a step of one token, until they are known.
const ASSUMED_FEW: f64 = 1.15;
const ASSUMED_FURTHER: f64 = 0.1;
const ASSUMED_DRAFTING: f64 = 0.25;
/// Least expected gain of a draft: measured times are noisy.
const LEAST_GAIN: f64 = 1.05;
/// Opportunities that are passed over before a source that does not pay is tried again. The number
/// doubles with each failure.
const PATIENCE: [u32; 2] = [16, 512];
/// Tokens of a draft that tries a source again.
const TRIAL: usize = 2;

/// Source of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A match of this many tokens.
    Lookup(usize),
    /// The draft model.
    Model,
    /// The model's layer that predicts further tokens.
    Mtp,
}

impl Source {
    /// Sources whose acceptance is counted together.
    const CLASSES: usize = 5;

    fn class(self) -> usize {
        match self {
            Self::Lookup(..=3) => 0,
            Self::Lookup(4..=7) => 1,
            Self::Lookup(_) => 2,
            Self::Model => 3,
            Self::Mtp => 4,
        }
    }
}

/// Acceptance of the drafts of a source.
#[derive(Debug, Clone)]
struct Acceptance {
    /// Verified and accepted tokens, earlier ones with less weight.
    verified: f64,
    accepted: f64,
    /// Assumed acceptance.
    prior: f64,
    /// Opportunities passed over since the last draft, and the number to pass over.
    skipped: u32,
    patience: u32,
}

impl Acceptance {
    fn new(prior: f64) -> Self {
        Self {
            verified: 0.0,
            accepted: 0.0,
            prior,
            skipped: 0,
            patience: PATIENCE[0],
        }
    }

    /// Returns the probability that a drafted token is accepted if those before it are.
    fn probability(&self) -> f64 {
        (self.accepted + PRIOR_TOKENS * self.prior) / (self.verified + PRIOR_TOKENS)
    }
}

/// Measured times and acceptance, from which the number of drafted tokens follows.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Seconds of a step of one token.
    step: Option<f64>,
    /// Times of steps by the number of drafted tokens, relative to `step`.
    verifying: [f64; Speculation::MOST + 1],
    /// Seconds in which a token is drafted, by the draft model or the model's own layer.
    draft: Option<f64>,
    sources: [Acceptance; Source::CLASSES],
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            step: None,
            verifying: std::array::from_fn(|drafted| match drafted {
                0 => 1.0,
                _ => ASSUMED_FEW + ASSUMED_FURTHER * drafted as f64,
            }),
            draft: None,
            sources: [0.5, 0.7, 0.8, 0.7, 0.7].map(Acceptance::new),
        }
    }
}

impl Pace {
    /// Returns the number of tokens to draft, at most `most`; 0 if a step of one token gains more.
    pub fn choose(&mut self, source: Source, most: usize) -> usize {
        let Some(step) = self.step else {
            // The first step measures the time of one token.
            return 0;
        };
        let drafting = match source {
            Source::Lookup(_) => 0.0,
            Source::Model | Source::Mtp => self.draft.map_or(ASSUMED_DRAFTING, |time| time / step),
        };
        let costs = (1..).zip(&self.verifying[1..]).take(most);
        let costs = costs.map(|(count, time)| time + f64::from(count) * drafting);
        let acceptance = &mut self.sources[source.class()];
        let (count, gain) = best(acceptance.probability(), costs);
        if gain >= LEAST_GAIN {
            acceptance.patience = PATIENCE[0];
            return count;
        }
        acceptance.skipped += 1;
        if acceptance.skipped <= acceptance.patience {
            return 0;
        }
        acceptance.skipped = 0;
        acceptance.patience = (2 * acceptance.patience).min(PATIENCE[1]);
        TRIAL.min(most)
    }

    /// Takes the time of a step of `tokens` tokens.
    pub fn observe_step(&mut self, tokens: usize, seconds: f64) {
        let Some(step) = &mut self.step else {
            if tokens == 1 {
                self.step = Some(seconds);
            }
            return;
        };
        if tokens == 1 {
            return approach(step, seconds.min(3.0 * *step), 1.0);
        }
        let Some(drafted) = tokens.checked_sub(1).filter(|&n| n <= Speculation::MOST) else {
            return;
        };
        let time = (seconds / *step).clamp(1.0, tokens as f64);
        let change = time - self.verifying[drafted];
        for (other, known) in self.verifying.iter_mut().enumerate().skip(1) {
            // Steps of similar numbers of tokens take similar times.
            let share = 0.5f64.powi(other.abs_diff(drafted) as i32);
            let new = *known + change;
            approach(known, new, share);
        }
    }

    /// Takes the time in which the draft model or the model's own layer drafted `tokens` tokens.
    pub fn observe_drafting(&mut self, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let seconds = seconds / tokens as f64;
            let known = self.draft.get_or_insert(seconds);
            approach(known, seconds.min(3.0 * *known), 1.0);
        }
    }

    /// Takes the outcome of a draft: `verified` of its tokens were compared with what the sampler
    /// picked.
    pub fn observe_draft(&mut self, source: Source, verified: usize, accepted: usize) {
        let acceptance = &mut self.sources[source.class()];
        acceptance.verified = FADE * acceptance.verified + verified as f64;
        acceptance.accepted = FADE * acceptance.accepted + accepted as f64;
    }
}

/// Moves a running mean towards a new time, which counts as `share` of a time.
fn approach(mean: &mut f64, new: f64, share: f64) {
    let [shorter, longer] = WEIGHTS;
    let weight = if new < *mean { shorter } else { longer };
    *mean += share * weight * (new - *mean);
}

/// Returns the number of drafted tokens that gives most tokens per time, and the factor that it
/// gains over steps of one token. `costs` are the times with 1, 2, ... drafted tokens, relative to
/// such a step. Each drafted token is accepted with `probability` if those before it are.
fn best(probability: f64, costs: impl Iterator<Item = f64>) -> (usize, f64) {
    let mut best = (0, 1.0);
    let (mut tokens, mut reached) = (1.0, 1.0);
    for (count, cost) in (1..).zip(costs) {
        reached *= probability;
        tokens += reached;
        if tokens / cost > best.1 {
            best = (count, tokens / cost);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source::Lookup(5);

    /// A pace on a machine where a step takes 10 ms and each further token `extra` ms.
    fn measured(extra: f64) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..100 {
            for tokens in 1..=8 {
                pace.observe_step(tokens, 0.010 + (tokens - 1) as f64 * 1e-3 * extra);
            }
        }
        pace
    }

    #[test]
    fn the_first_step_is_measured_alone() {
        let mut pace = Pace::default();
        assert_eq!(pace.choose(SOURCE, 7), 0);
        pace.observe_step(1, 0.010);
        assert!(pace.choose(SOURCE, 7) > 0);
    }

    #[test]
    fn accepted_drafts_become_longer_and_rejected_ones_shorter() {
        let mut pace = measured(1.0);
        let before = pace.choose(SOURCE, 7);
        for _ in 0..10 {
            pace.observe_draft(SOURCE, 7, 7);
        }
        assert_eq!(pace.choose(SOURCE, 7), 7);
        assert!((1..7).contains(&before), "{before}");
        for _ in 0..50 {
            pace.observe_draft(SOURCE, 1, 0);
        }
        assert_eq!(pace.choose(SOURCE, 7), 0);
        // Other sources have their own acceptance.
        assert!(pace.choose(Source::Lookup(16), 7) > 0);
        assert!(pace.choose(Source::Mtp, 7) > 0);
    }

    #[test]
    fn a_source_that_does_not_pay_is_tried_again_ever_more_rarely() {
        let mut pace = measured(1.0);
        let mut trials = Vec::new();
        for opportunity in 0..1000 {
            let drafted = pace.choose(SOURCE, 7);
            if drafted > 0 {
                trials.push(opportunity);
                pace.observe_draft(SOURCE, 1, 0);
            }
        }
        assert!(trials.len() < 16, "{trials:?}");
        let last = trials.windows(2).last().expect("several trials");
        assert!(last[1] - last[0] > 200, "{trials:?}");
        // It pays again.
        for _ in 0..20 {
            pace.observe_draft(SOURCE, 2, 2);
        }
        assert!(pace.choose(SOURCE, 7) > 2);
    }

    #[test]
    fn costly_tokens_are_not_drafted() {
        // Two tokens take as long as two steps.
        let mut pace = measured(10.0);
        assert_eq!(pace.choose(SOURCE, 7), 0);
        let mut pace = measured(0.5);
        pace.observe_drafting(4, 0.040);
        assert!(pace.choose(SOURCE, 7) > 0);
        assert_eq!(pace.choose(Source::Model, 7), 0);
    }

    /// Steps that other programs interrupt do not hide the gain.
    #[test]
    fn interrupted_steps_count_little() {
        let mut pace = measured(1.0);
        for round in 0..60 {
            let delay = if round % 5 == 0 { 0.020 } else { 0.0 };
            pace.observe_step(1, 0.010);
            pace.observe_step(8, 0.017 + delay);
            pace.observe_draft(SOURCE, 7, 7);
        }
        assert_eq!(pace.choose(SOURCE, 7), 7);
    }

    #[test]
    fn the_gain_is_tokens_by_time() {
        let costs = |further: f64| (1..=7).map(move |count| 1.0 + further * f64::from(count));
        assert_eq!(best(1.0, costs(0.0)), (7, 8.0));
        let (count, gain) = best(0.5, costs(0.1));
        assert_eq!(count, 2);
        assert!((gain - 1.75 / 1.2).abs() < 1e-12, "{gain}");
        assert_eq!(best(0.2, costs(0.3)), (0, 1.0));
    }
}
