//! Choice of a chain of methods: the least reduction that is sufficient.

use super::plan::{Reduction, Reductions};
use super::share::Share;

/// A chain of methods and its accuracy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The chain, as on the command line; empty for none.
    pub chain: &'static str,
    /// Share of right answers about images, in percent, with the model and question set of
    /// `docs/reduction.md`. Differences of less than one percent are within its error.
    pub accuracy: f64,
}

/// The chains to choose from, in the order in which they are tried. A chain comes before those that
/// leave fewer tokens; of chains that leave as many, the one comes first that leaves the encoder as
/// it is. Ratios are fixed, so that a choice does not change with small differences of times.
pub const CANDIDATES: &[Candidate] = &[
    candidate("", 96.3),
    candidate("diverse:0.75", 96.4),
    candidate("merge:0.75", 96.4),
    candidate("diverse:0.5", 96.0),
    candidate("merge:0.5", 95.9),
    candidate("diverse:0.33", 95.8),
    candidate("merge:0.33", 95.7),
    candidate("merge:0.33:3", 95.7),
    candidate("diverse:0.25", 95.4),
    candidate("merge:0.25", 95.4),
    candidate("merge:0.25:4", 95.4),
    candidate("merge:0.25,diverse:0.5", 94.3),
    candidate("diverse:0.11", 93.6),
    candidate("merge:0.25,diverse:0.44", 93.2),
    candidate("merge:0.11", 88.1),
];

const fn candidate(chain: &'static str, accuracy: f64) -> Candidate {
    Candidate { chain, accuracy }
}

impl Candidate {
    /// Returns the methods.
    pub fn reductions(&self) -> Reductions {
        match self.chain {
            "" => Reductions::default(),
            chain => chain.parse().expect("the table has valid chains"),
        }
    }
}

impl Reductions {
    /// Returns the chain that keeps `share` of the tokens and loses the least accuracy in the
    /// project's measurements (`docs/reduction.md`): the first one of [`CANDIDATES`] that keeps no
    /// more, with the ratio of its last method changed to keep exactly `share`. Chains that merge
    /// are left out, as the tokens of a Q-Former do not become fewer by merging.
    pub fn keeping(share: Share) -> Self {
        let chains = CANDIDATES.iter().map(Candidate::reductions);
        let mut chains = chains.filter(|chain| !chain.is_empty() && !chain.merges());
        let first = chains.clone().find(|chain| chain.most() <= share.get());
        let chain = first.or_else(|| chains.next_back()).unwrap_or_default();
        chain.with_share(share)
    }

    /// Changes the ratio of the last method so that all together keep `share`.
    fn with_share(self, share: Share) -> Self {
        let mut methods = self.methods().to_vec();
        let Some(last) = methods.pop() else {
            return self;
        };
        let before = Self::new(methods.clone()).map_or(1.0, |before| before.most());
        let ratio = Share::new((share.get() / before).min(1.0)).unwrap_or(share);
        methods.push(match last {
            Reduction::Diverse(_) => Reduction::Diverse(ratio),
            other => other,
        });
        Self::new(methods).unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stronger_chains_come_later() {
        let kept: Vec<f64> = CANDIDATES
            .iter()
            .map(|candidate| candidate.reductions().most())
            .collect();
        assert_eq!(kept[0], 1.0);
        assert!(kept.is_sorted_by(|a, b| *b <= a * 1.05), "{kept:?}");
        for candidate in CANDIDATES {
            // Chains are spelled as they are printed.
            assert_eq!(candidate.reductions().to_string(), candidate.chain);
        }
    }

    #[test]
    fn a_share_is_kept_exactly() {
        for share in [0.9, 0.75, 0.5, 0.4, 0.25, 0.11, 0.05, 0.01] {
            let chain = Reductions::keeping(Share::new(share).unwrap());
            assert!((chain.most() - share).abs() < 1e-9, "{share}: {chain}");
        }
        let all = Reductions::keeping(Share::ALL);
        assert_eq!(all.most(), 1.0);
    }
}
