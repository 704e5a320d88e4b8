//! Tokens whose features differ most (DivPrune, Alvar et al. 2025,
//! [arXiv:2503.02175](https://arxiv.org/abs/2503.02175)): a greedy solution of the max-min
//! diversity problem with cosine distances.

use std::borrow::Cow;

use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;

use crate::error::ModelError;
use crate::monitor::Monitor;
use crate::reduce::rows::Directions;

/// Rows of the matrix of distances that are computed at once.
const TILE: usize = 512;

/// The matrix of distances is stored for up to this many tokens, which takes 64 MiB. Beyond, its
/// rows are computed when they are needed.
const STORED: usize = 4096;

/// Returns `count` rows of `features`, sorted: those of `first`, of which there are at most `count`,
/// and others. Without `first`, the row whose nearest other row is farthest comes first; each further
/// one is the row farthest from those chosen. Of equal rows, the first is taken.
///
/// # Shapes
/// - features: `[tokens, width]`
///
/// # Errors
/// If `monitor` cancels.
pub fn diverse<B: KernelBackend>(
    features: &Tensor<B, 2>,
    count: usize,
    first: &[usize],
    monitor: &mut Monitor<'_>,
) -> Result<Vec<usize>, ModelError> {
    let [tokens, _] = features.dims();
    let count = count.min(tokens);
    if count == tokens {
        return Ok((0..tokens).collect());
    }
    let distances = Distances::new(features, monitor)?;
    let mut distance = distances.nearest.clone();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let next = first.get(chosen.len()).copied();
        let Some(next) = next.or_else(|| farthest(&distance)) else {
            break;
        };
        for (i, (d, &to_next)) in distance.iter_mut().zip(&*distances.row(next)).enumerate() {
            *d = match (i == next || *d == TAKEN, chosen.is_empty()) {
                (true, _) => TAKEN,
                (false, true) => to_next,
                (false, false) => d.min(to_next),
            };
        }
        chosen.push(next);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// Distance of a token that is chosen already.
const TAKEN: f32 = f32::NEG_INFINITY;

/// Returns the index of the largest distance, the first one of equal ones.
fn farthest(distance: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, d) in distance.iter().enumerate() {
        // NaN is never larger: features of a broken model do not decide.
        if *d > best.map_or(TAKEN, |best| distance[best]) {
            best = Some(i);
        }
    }
    best.or_else(|| distance.iter().position(|d| *d != TAKEN))
}

/// Squared distances of all pairs of directions.
struct Distances {
    directions: Directions,
    /// Distance of each token to the nearest other one.
    nearest: Vec<f32>,
    /// The matrix, row by row, if it is stored.
    stored: Vec<f32>,
}

impl Distances {
    fn new<B: KernelBackend>(
        features: &Tensor<B, 2>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Self, ModelError> {
        let [tokens, _] = features.dims();
        let mut distances = Self {
            directions: Directions::of(features.clone())?,
            nearest: Vec::with_capacity(tokens),
            stored: Vec::new(),
        };
        let tiles = tokens.div_ceil(TILE);
        for tile in 0..tiles {
            monitor.report(tile, tiles)?;
            let first = tile * TILE;
            let rows = distances
                .directions
                .distances(first..tokens.min(first + TILE));
            let rows_of = rows.chunks_exact(tokens).enumerate();
            distances.nearest.extend(rows_of.map(|(i, row)| {
                let others = row.iter().enumerate().filter(|(j, _)| *j != first + i);
                others.fold(f32::INFINITY, |near, (_, d)| near.min(*d))
            }));
            if tokens <= STORED {
                distances.stored.extend(rows);
            }
        }
        Ok(distances)
    }

    /// Returns the distances of a token to all tokens.
    fn row(&self, token: usize) -> Cow<'_, [f32]> {
        let tokens = self.nearest.len();
        match self.stored.is_empty() {
            true => self.directions.distances(token..token + 1).into(),
            false => self.stored[token * tokens..][..tokens].into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use burn::tensor::TensorData;

    use super::*;

    type Cpu = burn_ndarray::NdArray<f32, i64, i8>;

    fn choose(rows: &[[f32; 2]], count: usize) -> Vec<usize> {
        choose_after(rows, count, &[])
    }

    fn choose_after(rows: &[[f32; 2]], count: usize, first: &[usize]) -> Vec<usize> {
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        let data = TensorData::new(values, [rows.len(), 2]);
        let features = Tensor::<Cpu, 2>::from_data(data, &Default::default());
        let mut report = |_| ControlFlow::Continue(());
        diverse(&features, count, first, &mut Monitor::new(&mut report)).unwrap()
    }

    /// Worked by hand: rows 0 and 1 point almost the same way, as do rows 2 and 3; row 4 is alone.
    #[test]
    fn one_of_every_direction_is_taken() {
        let rows = [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.2, 3.0], [-1.0, -1.0]];
        assert_eq!(choose(&rows, 1), [4]);
        assert_eq!(choose(&rows, 3).len(), 3);
        let three = choose(&rows, 3);
        assert!(three.contains(&4) && three.iter().filter(|&&i| i < 2).count() == 1);
        assert_eq!(choose(&rows, 9), [0, 1, 2, 3, 4]);
        // The farthest row from row 1 is row 4, and then row 2: 87 degrees from row 1.
        assert_eq!(choose_after(&rows, 3, &[1]), [1, 2, 4]);
        assert_eq!(choose_after(&rows, 2, &[3, 1]), [1, 3]);
    }

    #[test]
    fn equal_and_broken_rows_are_distinct_tokens() {
        assert_eq!(choose(&[[1.0, 1.0]; 4], 2), [0, 1]);
        assert_eq!(choose(&[[f32::NAN, 1.0]; 4], 3), [0, 1, 2]);
        assert_eq!(choose(&[[0.0, 0.0]; 3], 2), [0, 1]);
    }
}
