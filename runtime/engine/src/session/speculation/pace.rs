//! Number of tokens to draft.

/// Weight of a new observation in a running mean.
const WEIGHT: f64 = 0.2;
/// Factor by which earlier drafts count less with each new one.
const FADE: f64 = 0.9;
/// Drafted tokens that the assumed acceptance counts as.
const PRIOR_TOKENS: f64 = 2.0;
/// Assumed time of a further token of a step, relative to a step of one token, until it is known.
const ASSUMED_EXTRA: f64 = 0.25;
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
}

impl Source {
    /// Sources whose acceptance is counted together.
    const CLASSES: usize = 4;

    fn class(self) -> usize {
        match self {
            Self::Lookup(..=3) => 0,
            Self::Lookup(4..=7) => 1,
            Self::Lookup(_) => 2,
            Self::Model => 3,
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
    /// Time of each further token of a step, relative to `step`.
    extra: f64,
    /// Seconds in which the draft model drafts a token.
    draft: Option<f64>,
    sources: [Acceptance; Source::CLASSES],
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            step: None,
            extra: ASSUMED_EXTRA,
            draft: None,
            sources: [0.5, 0.7, 0.8, 0.7].map(Acceptance::new),
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
            Source::Model => self.draft.map_or(ASSUMED_EXTRA, |time| time / step),
        };
        let cost = self.extra + drafting;
        let acceptance = &mut self.sources[source.class()];
        let (count, gain) = best(acceptance.probability(), cost, most);
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
        match (tokens, self.step) {
            (0, _) => {}
            (1, Some(step)) => mean(step, &mut self.step, seconds.min(3.0 * step)),
            (1, None) => self.step = Some(seconds),
            (_, Some(step)) => {
                let extra = (seconds / step - 1.0) / (tokens - 1) as f64;
                self.extra += WEIGHT * (extra.clamp(0.0, 1.5) - self.extra);
            }
            (_, None) => {}
        }
    }

    /// Takes the time in which the draft model drafted `tokens` tokens.
    pub fn observe_drafting(&mut self, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let seconds = seconds / tokens as f64;
            let known = self.draft.unwrap_or(seconds);
            mean(known, &mut self.draft, seconds.min(3.0 * known));
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

fn mean(known: f64, place: &mut Option<f64>, new: f64) {
    *place = Some(known + WEIGHT * (new - known));
}

/// Returns the number of drafted tokens that gives most tokens per time, and the factor that it
/// gains over steps of one token. Each drafted token costs `cost` steps of one token and is accepted
/// with `probability` if those before it are.
fn best(probability: f64, cost: f64, most: usize) -> (usize, f64) {
    let mut best = (0, 1.0);
    let (mut tokens, mut reached) = (1.0, 1.0);
    for count in 1..=most {
        reached *= probability;
        tokens += reached;
        let gain = tokens / (1.0 + count as f64 * cost);
        if gain > best.1 {
            best = (count, gain);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source::Lookup(5);

    /// A pace on a machine where a step takes 10 ms and a further token `extra` ms.
    fn measured(extra: f64) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.observe_step(1, 0.010);
            pace.observe_step(4, 0.010 + 3e-3 * extra);
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
        for _ in 0..10 {
            pace.observe_draft(SOURCE, 1, 0);
        }
        assert_eq!(pace.choose(SOURCE, 7), 0);
        // Another source has its own acceptance.
        assert!(pace.choose(Source::Lookup(16), 7) > 0);
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

    #[test]
    fn the_gain_is_tokens_by_time() {
        assert_eq!(best(1.0, 0.0, 7), (7, 8.0));
        let (count, gain) = best(0.5, 0.1, 7);
        assert_eq!(count, 2);
        assert!((gain - 1.75 / 1.2).abs() < 1e-12, "{gain}");
        assert_eq!(best(0.2, 0.3, 7), (0, 1.0));
    }
}
