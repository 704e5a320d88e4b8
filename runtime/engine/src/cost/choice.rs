//! Choice of a chain of methods for a time limit.

use edge_lmm_models::media::{MediaInput, MediaKind};
use edge_lmm_models::reduce::choice::CANDIDATES;
use edge_lmm_models::reduce::{EncoderSize, Reductions};

use super::CostModel;

/// A medium to be encoded.
#[derive(Debug, Clone)]
pub(crate) struct Work<'a> {
    pub input: &'a MediaInput,
    pub size: EncoderSize,
}

/// A chain and the estimated time to the first token with it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub chain: Reductions,
    /// Milliseconds.
    pub ms: f64,
}

/// Chooses the first chain of [`CANDIDATES`] that reaches `budget` milliseconds, or else the fastest
/// one, for `media` beside `other` milliseconds of encoding. `tokens` are the tokens of the prompt
/// that have to be computed, with all tokens of `media`.
pub(crate) fn choose(
    costs: &CostModel,
    media: &[Work<'_>],
    tokens: usize,
    other: f64,
    budget: f64,
) -> Choice {
    let visual = || {
        media
            .iter()
            .filter(|work| work.input.kind != MediaKind::Audio)
    };
    let candidates = match visual().next() {
        None => &CANDIDATES[..1],
        Some(_) => CANDIDATES,
    };
    let mut fastest: Option<Choice> = None;
    for candidate in candidates {
        let chain = candidate.reductions();
        if chain.merges() && visual().any(|work| !work.size.merges) {
            continue;
        }
        let mut ms = other;
        let mut left = tokens;
        for work in media {
            let (schedule, time) = costs.medium(work, &chain);
            left = left.saturating_sub(work.input.tokens() - schedule.tokens);
            ms += time;
        }
        ms += costs.prefilling(left.max(1), None);
        if ms <= budget {
            return Choice { chain, ms };
        }
        if fastest.as_ref().is_none_or(|fastest| ms < fastest.ms) {
            fastest = Some(Choice { chain, ms });
        }
    }
    fastest.expect("the first candidate can always be used")
}

#[cfg(test)]
mod tests {
    use edge_lmm_models::layout::Run;
    use edge_lmm_models::media::InputReduction;

    use super::*;
    use crate::cost::tests::COSTS;

    fn image(kind: MediaKind) -> MediaInput {
        MediaInput {
            kind,
            values: vec![0.0; 100],
            shape: Vec::new(),
            grid: [0; 3],
            layout: Run::sequence(100).into(),
            reduction: InputReduction::default(),
            piece: None,
        }
    }

    fn choice(budget: f64, merges: bool, kind: MediaKind) -> (String, f64) {
        let input = image(kind);
        let size = EncoderSize {
            parts: vec![100],
            rows: 1,
            layers: 8,
            merges,
            units_are_tokens: true,
        };
        let work = Work {
            input: &input,
            size,
        };
        let Choice { chain, ms } = choose(&COSTS, &[work], 110, 0.0, budget);
        (chain.to_string(), ms)
    }

    /// 100 rows take 210 ms, 110 tokens 220 ms.
    #[test]
    fn the_least_sufficient_reduction_is_chosen() {
        for (budget, expected) in [
            (1000.0, ""),
            (430.0, ""),
            (429.0, "diverse:0.75"),
            (380.0, "diverse:0.75"),
            (379.0, "merge:0.75"),
        ] {
            let (chain, ms) = choice(budget, true, MediaKind::Image);
            assert_eq!(chain, expected, "{budget}");
            assert!(ms <= budget);
        }
        // Every smaller budget chooses a chain that takes less time.
        let mut before = f64::INFINITY;
        for budget in (40..44).rev().map(|n| f64::from(n) * 10.0) {
            let (_, ms) = choice(budget, true, MediaKind::Image);
            assert!(ms <= before.min(budget));
            before = ms;
        }
    }

    #[test]
    fn the_fastest_chain_is_taken_if_none_is_sufficient() {
        let (chain, ms) = choice(1.0, true, MediaKind::Image);
        assert!(chain.contains("merge") && ms > 1.0, "{chain}");
        // An encoder that cannot merge.
        let (chain, ms) = choice(1.0, false, MediaKind::Image);
        assert_eq!(chain, "diverse:0.11");
        assert!((ms - (210.0 + 2.0 * 21.0)).abs() < 1e-9, "{ms}");
        // Sounds are not reduced.
        let (chain, _) = choice(1.0, true, MediaKind::Audio);
        assert_eq!(chain, "");
    }
}
