//! Divergence of two distributions over the next token, from their scores.

use serde::{Deserialize, Serialize};

/// Kullback-Leibler divergence of a candidate's predictions from the reference's, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Divergence {
    /// Mean over the scored positions.
    pub mean: f64,
    /// Standard error of the mean, from the means of the windows; missing for a single window.
    pub standard_error: Option<f64>,
    /// Median over the scored positions.
    pub median: f64,
    /// 99th percentile over the scored positions.
    pub p99: f64,
    /// Largest divergence of a position.
    pub max: f64,
}

impl Divergence {
    /// Summarizes the divergences of the positions of each window. Every window has at least one.
    pub fn of(windows: &[Vec<f64>]) -> Self {
        let mut all: Vec<f64> = windows.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        let means: Vec<f64> = windows.iter().map(|window| mean(window)).collect();
        Self {
            mean: mean(&all),
            standard_error: standard_error(&means),
            median: percentile(&all, 0.5),
            p99: percentile(&all, 0.99),
            max: all.last().copied().unwrap_or_default(),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns the standard error of the mean of independent values.
fn standard_error(values: &[f64]) -> Option<f64> {
    let count = values.len();
    if count < 2 {
        return None;
    }
    let center = mean(values);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    Some((squares / (count - 1) as f64 / count as f64).sqrt())
}

/// Returns a percentile of sorted values, interpolated linearly as in NumPy.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or_default();
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

/// The reference's distribution over the next token at one position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distribution<'a> {
    scores: &'a [f32],
    largest: f32,
    best: usize,
    log_sum: f64,
}

/// How a candidate predicts one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prediction {
    /// Divergence from the reference.
    pub divergence: f64,
    /// Negative logarithm of the probability of the token that follows.
    pub surprise: f64,
    /// The most probable token is that of the reference.
    pub agrees: bool,
}

impl<'a> Distribution<'a> {
    /// Creates the distribution with these scores, one for each token.
    pub fn new(scores: &'a [f32]) -> Self {
        let mut best = 0;
        for (i, &score) in scores.iter().enumerate() {
            if score > scores[best] {
                best = i;
            }
        }
        let largest = scores[best];
        let sum: f64 = (scores.iter())
            .map(|score| f64::from((score - largest).exp()))
            .sum();
        Self {
            scores,
            largest,
            best,
            log_sum: sum.ln() + f64::from(largest),
        }
    }

    /// Returns the negative logarithm of the probability of a token.
    pub fn surprise(&self, token: u32) -> f64 {
        self.log_sum - f64::from(self.scores[token as usize])
    }

    /// Compares the prediction of a candidate with this one; `next` is the token that follows.
    pub fn predict(&self, candidate: &Self, next: u32) -> Prediction {
        // The mean of the difference of logarithms under this distribution, whose normalization
        // is left to the end. Equal scores give exactly zero.
        let (mut sum, mut total) = (0.0, 0.0);
        for (&own, &other) in self.scores.iter().zip(candidate.scores) {
            let weight = f64::from((own - self.largest).exp());
            total += weight;
            sum += weight * (f64::from(own) - f64::from(other));
        }
        Prediction {
            divergence: sum / total - self.log_sum + candidate.log_sum,
            surprise: candidate.surprise(next),
            agrees: self.best == candidate.best,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_of_known_distributions() {
        let scores = |probabilities: [f64; 3]| probabilities.map(|p| (p.ln() + 7.0) as f32);
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]);
        let (own, other) = (scores(p), scores(q));
        let (own, other) = (Distribution::new(&own), Distribution::new(&other));
        let found = own.predict(&other, 2);
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((found.divergence - expected).abs() < 1e-6, "{found:?}");
        assert!((found.surprise - 4f64.ln()).abs() < 1e-6, "{found:?}");
        assert!(!found.agrees);
        let same = own.predict(&own, 0);
        assert_eq!((same.divergence, same.agrees), (0.0, true));
    }

    #[test]
    fn windows_give_the_standard_error() {
        let windows = [vec![1.0, 3.0], vec![2.0, 4.0], vec![3.0, 5.0]];
        let found = Divergence::of(&windows);
        assert_eq!((found.mean, found.median, found.max), (3.0, 3.0, 5.0));
        // The means of the windows are 2, 3 and 4: deviation 1.
        let error = found.standard_error.expect("several windows");
        assert!((error - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert!((found.p99 - 4.95).abs() < 1e-12);
        assert_eq!(Divergence::of(&windows[..1]).standard_error, None);
    }
}
