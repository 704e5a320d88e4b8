//! Tokens at positions that serve as coordinates (IVC-Prune, Sun et al. 2026,
//! [arXiv:2602.03060](https://arxiv.org/abs/2602.03060)).
//!
//! Rotary embeddings turn a query and a key by angles that are proportional to their positions.
//! Where the cosines of a position's angles are near 1, its rotation is nearly the identity; where
//! the sines are, it is nearly one of 90 degrees. Attention to tokens at such positions tells a model
//! where others are. They are ranked by the mean of the cosines and by the mean of the sines, and
//! taken from both rankings in turn.

use super::share::Share;

/// Protection of anchors from the methods that choose tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anchors(pub Share);

impl Anchors {
    /// The share if none is given.
    pub const DEFAULT: Self = Self(Share::FIFTH);

    /// Returns the number of anchors among `kept` tokens.
    pub fn of(self, kept: usize) -> usize {
        self.0.of(kept)
    }
}

/// Mean cosine and mean sine of the rotary angles of a position.
pub type RotaryMeans = [f32; 2];

/// Returns all tokens, the best anchors first. Of equal ones, the first is better.
pub fn ranking(means: &[RotaryMeans]) -> Vec<usize> {
    let by = |part: usize| {
        let mut order: Vec<usize> = (0..means.len()).collect();
        order.sort_by(|&a, &b| means[b][part].total_cmp(&means[a][part]));
        order
    };
    let orders = [by(0), by(1)];
    let mut places = [0; 2];
    let mut is_ranked = vec![false; means.len()];
    let mut ranked = Vec::with_capacity(means.len());
    while ranked.len() < means.len() {
        let part = ranked.len() % 2;
        while is_ranked[orders[part][places[part]]] {
            places[part] += 1;
        }
        let token = orders[part][places[part]];
        is_ranked[token] = true;
        ranked.push(token);
    }
    ranked
}

/// Returns the places of the `count` best anchors, the best first. `ranks` has the rank of each
/// token in [`ranking`].
pub(crate) fn best(ranks: &[usize], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..ranks.len()).collect();
    places.sort_by_key(|&place| ranks[place]);
    places.truncate(count);
    places
}

/// Returns the rank of each token of a ranking.
pub(crate) fn ranks(ranking: &[usize]) -> Vec<usize> {
    let mut ranks = vec![0; ranking.len()];
    for (rank, &token) in ranking.iter().enumerate() {
        ranks[token] = rank;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: cosines rank 0, 3, 1, 2 and sines rank 1, 2, 0, 3.
    #[test]
    fn cosines_and_sines_take_turns() {
        let means = [[1.0, 0.1], [0.4, 0.9], [-0.5, 0.8], [0.7, -0.2]];
        assert_eq!(ranking(&means), [0, 1, 3, 2]);
        assert_eq!(ranks(&[0, 1, 3, 2]), [0, 1, 3, 2]);
        assert_eq!(best(&[7, 2, 9, 4], 2), [1, 3]);
        assert_eq!(ranking(&[[0.5, 0.5]; 3]), [0, 1, 2]);
        assert_eq!(ranking(&[[f32::NAN, 0.5], [0.5, f32::NAN]]).len(), 2);
    }
}
