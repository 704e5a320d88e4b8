//! Merging of similar units within an encoder (ToMe, Bolya et al. 2023,
//! [arXiv:2210.09461](https://arxiv.org/abs/2210.09461)).
//!
//! After the attention of a layer, units at even places look for the most similar unit at an odd
//! place; the most similar pairs become one unit, whose rows are the means of the two, weighted by
//! the number of original units in them. The unit keeps the place of the odd one. Later layers count
//! a key as often as it has original units (proportional attention). Similarity is the cosine of
//! the keys before rotation, averaged over heads.
//!
//! Units consist of several rows in towers whose projector joins a square of patches; row `i` of
//! one is merged with row `i` of the other.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, RowSums, pool, squared_distances, sum_rows};

use super::rows::{normalize, read};
use super::sampling::largest;
use super::share::Share;
use crate::error::ModelError;

/// The share of units that merging leaves, and the layers that merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merge {
    /// Share of the units to keep.
    pub share: Share,
    /// The first layers, which merge.
    pub layers: Layers,
}

/// A number of layers from the first one on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Layers {
    /// This many, at least one.
    Count(usize),
    /// A share of all layers, rounded up.
    Share(Share),
}

impl Layers {
    /// Returns the number of layers out of `depth`.
    pub fn of(self, depth: usize) -> usize {
        match self {
            Self::Count(count) => count.min(depth),
            Self::Share(share) => ((share.get() * depth as f64).ceil() as usize).clamp(1, depth),
        }
    }
}

impl Merge {
    /// Returns the number of units left after layer `layer` of `depth`, out of `units` at first. The
    /// number falls by the same factor in every layer that merges.
    pub fn left(self, units: usize, layer: usize, depth: usize) -> usize {
        let (first, last) = (units as f64, self.share.of(units) as f64);
        let layers = self.layers.of(depth) as f64;
        let progress = ((layer + 1) as f64 / layers).min(1.0);
        (first * (last / first).powf(progress) + 0.5).floor() as usize
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.share.fmt(f)?;
        match self.layers {
            Layers::Share(Share::ALL) => Ok(()),
            Layers::Share(share) => write!(f, ":{}%", share.get() * 100.0),
            Layers::Count(count) => write!(f, ":{count}"),
        }
    }
}

impl FromStr for Merge {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((share, layers)) = text.split_once(':') else {
            return Ok(Self {
                share: text.parse()?,
                layers: Layers::Share(Share::ALL),
            });
        };
        let layers = match layers.parse() {
            Ok(0) => return Err(()),
            Ok(count) => Layers::Count(count),
            Err(_) if layers.ends_with('%') => Layers::Share(layers.parse()?),
            Err(_) => return Err(()),
        };
        let share = share.parse()?;
        Ok(Self { share, layers })
    }
}

/// The units of a medium within an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Units {
    /// Number of each unit in the medium, in the order of the rows.
    pub ids: Vec<usize>,
    /// Number of original units in each; empty before the first merge.
    pub sizes: Vec<f32>,
    /// Rows of a unit.
    pub rows: usize,
}

impl Units {
    /// Creates units of `rows` rows that are not merged.
    pub fn new(ids: Vec<usize>, rows: usize) -> Self {
        Self {
            ids,
            sizes: Vec::new(),
            rows,
        }
    }

    /// Returns the bounds of consecutive units for which `key` is the same, from 0 on.
    pub fn bounds(&self, key: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut bounds = vec![0];
        for (i, pair) in self.ids.windows(2).enumerate() {
            if key(pair[0]) != key(pair[1]) {
                bounds.push(i + 1);
            }
        }
        bounds.push(self.ids.len());
        bounds
    }

    /// Returns the weight of each row as a key, after `leading` rows that are not part of a unit;
    /// `None` before the first merge.
    pub fn key_weights(&self, leading: usize) -> Option<Vec<f32>> {
        let sizes = self
            .sizes
            .iter()
            .flat_map(|&size| std::iter::repeat_n(size, self.rows));
        let weights = std::iter::repeat_n(1.0, leading).chain(sizes);
        (!self.sizes.is_empty()).then(|| weights.collect())
    }

    /// Returns the row numbers of the units at `places`.
    pub fn row_indices(&self, places: &[usize]) -> Vec<usize> {
        let rows = |&place: &usize| place * self.rows..(place + 1) * self.rows;
        places.iter().flat_map(rows).collect()
    }
}

/// Units to be merged in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairs {
    /// Place of each unit that is merged into another one.
    from: Vec<usize>,
    /// Place of the unit that it is merged into.
    into: Vec<usize>,
    /// Places of the units that are left, sorted.
    left: Vec<usize>,
}

impl Pairs {
    /// Returns the places of the units that are left.
    pub fn left(&self) -> &[usize] {
        &self.left
    }

    /// Finds the pairs to be merged. Only units of the same range of
    /// `scopes` are merged; `left` returns the number of units to leave in each range of `slices`.
    /// `None` if no pair is merged.
    ///
    /// # Shapes
    /// - keys: `[units * rows, head_dim]`, before rotation, summed over heads
    ///
    /// # Errors
    /// If the keys cannot be read.
    pub fn find<B: KernelBackend>(
        keys: Tensor<B, 2>,
        units: &Units,
        [slices, scopes]: [&[usize]; 2],
        left: impl Fn(usize) -> usize,
    ) -> Result<Option<Self>, ModelError> {
        let wanted: Vec<usize> = slices
            .windows(2)
            .enumerate()
            .map(|(slice, ends)| (ends[1] - ends[0]).saturating_sub(left(slice)))
            .collect();
        if wanted.iter().all(|&count| count == 0) {
            return Ok(None);
        }
        let metric = Metric::new(keys, units.rows)?;
        let mut pairs = Self::default();
        for (slice, &count) in slices.windows(2).zip(&wanted) {
            let within = |ends: &&[usize]| slice[0] <= ends[0] && ends[1] <= slice[1];
            let scopes = scopes.windows(2).filter(within);
            let candidates: Vec<Candidate> = scopes
                .flat_map(|scope| metric.best_pairs(scope[0]..scope[1]))
                .collect();
            let scores: Vec<f32> = candidates.iter().map(|pair| pair.similarity).collect();
            for index in largest(&scores, count) {
                pairs.from.push(candidates[index].from);
                pairs.into.push(candidates[index].into);
            }
        }
        let mut is_left = vec![true; units.ids.len()];
        pairs.from.iter().for_each(|&place| is_left[place] = false);
        pairs.left = (0..is_left.len()).filter(|&place| is_left[place]).collect();
        Ok((!pairs.from.is_empty()).then_some(pairs))
    }

    /// Merges the units' rows.
    ///
    /// # Shapes
    /// - x: `[units * rows, width]`, result: `[left * rows, width]`
    pub fn merge<B: KernelBackend>(&self, x: Tensor<B, 2>, units: &mut Units) -> Tensor<B, 2> {
        let [_, width] = x.dims();
        let count = units.ids.len();
        let x = x.reshape([count, units.rows * width]);
        if units.sizes.is_empty() {
            units.sizes = vec![1.0; count];
        }
        let before = units.sizes.clone();
        let mut after = before.clone();
        for (&from, &into) in self.from.iter().zip(&self.into) {
            after[into] += before[from];
        }
        let mut sums = RowSums::default();
        for &place in &self.left {
            let merged = self.from.iter().zip(&self.into);
            let merged = merged.filter(|(_, into)| **into == place);
            let parts = std::iter::once(place).chain(merged.map(|(from, _)| *from));
            sums.push(parts.map(|part| (part, before[part] / after[place])));
        }
        let rows = sum_rows(x, &sums);
        units.ids = self.left.iter().map(|&place| units.ids[place]).collect();
        units.sizes = self.left.iter().map(|&place| after[place]).collect();
        rows.reshape([self.left.len() * units.rows, width])
    }
}

/// A unit and the most similar one that it can be merged into.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    from: usize,
    into: usize,
    similarity: f32,
}

/// A vector of length 1 for each unit: the keys of its rows.
struct Metric {
    vectors: Vec<f32>,
    width: usize,
}

impl Metric {
    /// Builds the vectors from keys that are summed over heads. The mean has the same direction.
    fn new<B: KernelBackend>(keys: Tensor<B, 2>, rows: usize) -> Result<Self, ModelError> {
        let width = rows * keys.dims()[1];
        let mut vectors = read(keys)?;
        vectors.chunks_exact_mut(width).for_each(normalize);
        Ok(Self { vectors, width })
    }

    fn at(&self, places: &[usize]) -> Vec<f32> {
        let vector = |&place: &usize| &self.vectors[place * self.width..][..self.width];
        places.iter().flat_map(vector).copied().collect()
    }

    /// Finds the most similar unit at an odd place for each unit at an even place of `scope`.
    fn best_pairs(&self, scope: Range<usize>) -> Vec<Candidate> {
        let from: Vec<usize> = scope.clone().step_by(2).collect();
        let into: Vec<usize> = scope.skip(1).step_by(2).collect();
        if into.is_empty() {
            return Vec::new();
        }
        let mut distances = vec![0.0; from.len() * into.len()];
        let (a, b) = (self.at(&from), self.at(&into));
        squared_distances(&pool::global(), &a, &b, self.width, &mut distances);
        let rows = from.iter().zip(distances.chunks_exact(into.len()));
        let nearest = |(&from, distances): (&usize, &[f32])| {
            let mut best = 0;
            for (i, distance) in distances.iter().enumerate() {
                if *distance < distances[best] {
                    best = i;
                }
            }
            Candidate {
                from,
                into: into[best],
                similarity: -distances[best],
            }
        };
        rows.map(nearest).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    type Cpu = burn_ndarray::NdArray<f32, i64, i8>;

    fn tensor(values: &[f32], width: usize) -> Tensor<Cpu, 2> {
        let data = TensorData::new(values.to_vec(), [values.len() / width, width]);
        Tensor::from_data(data, &Default::default())
    }

    /// Four units of two rows in one head: 0 and 3 are alike, as are 2 and 1, less so.
    #[test]
    fn the_most_similar_units_become_one() {
        let keys = tensor(&[1.0, 0.0, 0.0, 1.0, 0.1, 1.0, 1.0, 0.0], 1);
        let mut units = Units::new(vec![10, 11, 12, 13], 2);
        let bounds = [0, 4];
        let pairs = Pairs::find(keys, &units, [&bounds, &bounds], |_| 3);
        let pairs = pairs.unwrap().unwrap();
        assert_eq!((&pairs.from[..], &pairs.into[..]), (&[0][..], &[3][..]));
        let x = tensor(&[2.0, 4.0, 1.0, 1.0, 5.0, 5.0, 8.0, 6.0], 1);
        let merged: Vec<f32> = read(pairs.merge(x, &mut units)).unwrap();
        assert_eq!(merged, [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]);
        assert_eq!(units.ids, [11, 12, 13]);
        assert_eq!(units.sizes, [1.0, 1.0, 2.0]);
        assert_eq!(
            units.key_weights(1),
            Some(vec![1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
        );
        // A merged unit counts twice in the next mean.
        let next = Pairs {
            from: vec![2],
            into: vec![1],
            left: vec![0, 1],
        };
        let merged: Vec<f32> = read(next.merge(tensor(&merged, 1), &mut units)).unwrap();
        assert_eq!(merged, [1.0, 1.0, 5.0, 5.0]);
        assert_eq!(units.sizes, [1.0, 3.0]);
    }

    #[test]
    fn units_of_different_scopes_are_not_merged() {
        let keys = tensor(&[1.0; 6], 1);
        let units = Units::new((0..6).collect(), 1);
        let pairs = Pairs::find(keys, &units, [&[0, 6], &[0, 1, 3, 6]], |_| 1);
        let pairs = pairs.unwrap().unwrap();
        // The first scope has one unit; the others merge their even places.
        assert_eq!(
            (&pairs.from[..], &pairs.into[..]),
            (&[1, 3, 5][..], &[2, 4, 4][..])
        );
    }

    /// The schedule of the reference for 64 units, half of them kept in five layers.
    #[test]
    fn the_number_of_units_falls_by_the_same_factor() {
        let merge: Merge = "0.5".parse().unwrap();
        let left = |layer| merge.left(64, layer, 5);
        assert_eq!([0, 1, 2, 3, 4].map(left), [56, 49, 42, 37, 32]);
        let early: Merge = "0.5:40%".parse().unwrap();
        assert_eq!(
            [0, 1, 4].map(|layer| early.left(64, layer, 5)),
            [45, 32, 32]
        );
    }
}
