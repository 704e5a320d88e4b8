//! Units of an image that equal a neighbor, dropped before the encoder (PixelPrune,
//! [arXiv:2604.00886](https://arxiv.org/abs/2604.00886)), and units of a video that do not change.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::plan::{Reduction, Reductions};
use super::share::Share;
use crate::media::{InputReduction, MediaKind};

/// The units that are kept: the new ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Novel {
    /// Units whose mean absolute difference of 8-bit samples is more than this.
    Above(f64),
    /// The share of units that differ most.
    Share(Share),
}

impl Novel {
    /// All units that differ at all.
    pub const EXACT: Self = Self::Above(0.0);

    /// Returns the units to keep, sorted, by their differences.
    fn kept(self, differences: &[Difference]) -> Vec<usize> {
        match self {
            Self::Share(share) => {
                let count = share.of(differences.len());
                let mut order: Vec<usize> = (0..differences.len()).collect();
                order.sort_by(|&a, &b| differences[b].order(&differences[a]));
                order.truncate(count);
                order.sort_unstable();
                order
            }
            Self::Above(tolerance) => {
                let units = differences.iter().enumerate();
                let new = units.filter(|(_, d)| f64::from(d.around) > tolerance);
                new.map(|(unit, _)| unit).collect()
            }
        }
    }
}

impl fmt::Display for Novel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(tolerance) => tolerance.fmt(f),
            Self::Share(share) => write!(f, "{}%", share.get() * 100.0),
        }
    }
}

impl FromStr for Novel {
    type Err = ();

    /// Parses a tolerance such as `2.5`, or a share such as `50%`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.ends_with('%') {
            return Ok(Self::Share(text.parse()?));
        }
        let tolerance: f64 = text.parse().map_err(|_| ())?;
        let valid = (0.0..=255.0).contains(&tolerance);
        valid.then_some(Self::Above(tolerance)).ok_or(())
    }
}

/// Mean absolute difference of a unit's samples from those that it is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The largest one of the unit and those around it, if these count as well.
    pub around: f32,
    /// The difference of the unit itself.
    pub own: f32,
}

impl Difference {
    fn order(&self, other: &Self) -> Ordering {
        let around = self.around.total_cmp(&other.around);
        around.then(self.own.total_cmp(&other.own))
    }
}

impl From<f32> for Difference {
    /// The difference of a unit without those around it.
    fn from(own: f32) -> Self {
        Self { around: own, own }
    }
}

/// The 8-bit samples of all units: for each slice in time, the units of a grid in raster order.
#[derive(Debug, Clone, Copy)]
pub struct UnitSamples<'a> {
    /// The samples, all of a unit adjacent.
    pub samples: &'a [u8],
    /// Units in time, height and width.
    pub grid: [usize; 3],
}

impl UnitSamples<'_> {
    fn unit(&self, index: usize) -> &[u8] {
        let len = self.samples.len() / self.grid.iter().product::<usize>().max(1);
        &self.samples[index * len..][..len]
    }

    fn difference(&self, a: usize, b: usize) -> f32 {
        let (a, b) = (self.unit(a), self.unit(b));
        let sum: u64 = a
            .iter()
            .zip(b)
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        (sum as f64 / a.len().max(1) as f64) as f32
    }

    /// Returns the difference of every unit from its left or upper neighbor, whichever is smaller;
    /// infinite for the first unit of a slice.
    pub fn spatial(&self) -> Vec<Difference> {
        let [times, height, width] = self.grid;
        let mut differences = Vec::with_capacity(times * height * width);
        for unit in 0..times * height * width {
            let (row, column) = (unit / width % height, unit % width);
            let left = (column > 0).then(|| self.difference(unit, unit - 1));
            let up = (row > 0).then(|| self.difference(unit, unit - width));
            let nearest = left.into_iter().chain(up);
            differences.push(nearest.fold(f32::INFINITY, f32::min).into());
        }
        differences
    }

    /// Returns the difference of every unit from that at the same place of the slice before;
    /// infinite in the first slice.
    ///
    /// A change counts for the eight units around it as well: slices do not attend to each other in
    /// the encoder, and a part of an object without its surroundings is not recognized.
    pub fn temporal(&self) -> Vec<Difference> {
        let [times, height, width] = self.grid;
        let slice = height * width;
        let difference = |unit: usize| match unit.checked_sub(slice) {
            Some(before) => self.difference(unit, before),
            None => f32::INFINITY,
        };
        let own: Vec<f32> = (0..times * slice).map(difference).collect();
        let around = |unit: usize| {
            let (first, row, column) = (unit / slice * slice, unit % slice / width, unit % width);
            let rows = row.saturating_sub(1)..(row + 2).min(height);
            let columns = column.saturating_sub(1)..(column + 2).min(width);
            let of_row = |row: usize| &own[first + row * width..][columns.clone()];
            rows.flat_map(of_row).copied().fold(0.0, f32::max)
        };
        let differences = own.iter().enumerate();
        differences
            .map(|(unit, &own)| Difference {
                around: around(unit),
                own,
            })
            .collect()
    }
}

/// Chooses the units of an image or video that enter the encoder. `grid` are its units in time,
/// height and width; `samples` is called only if a method needs the 8-bit samples of all units.
pub fn enter(
    methods: &Reductions,
    kind: MediaKind,
    grid: [usize; 3],
    samples: impl FnOnce() -> Vec<u8>,
) -> InputReduction {
    let mut reduction = InputReduction {
        methods: methods.clone(),
        ..InputReduction::default()
    };
    let drops = |method: &&Reduction| match method {
        Reduction::Duplicates(_) => true,
        Reduction::Still(_) => kind == MediaKind::Video,
        _ => false,
    };
    let methods: Vec<&Reduction> = methods.methods().iter().filter(drops).collect();
    if methods.is_empty() {
        return reduction;
    }
    let samples = samples();
    let samples = UnitSamples {
        samples: &samples,
        grid,
    };
    let mut kept: Vec<usize> = (0..grid.iter().product()).collect();
    for method in methods {
        let (novel, differences) = match method {
            Reduction::Duplicates(novel) => (novel, samples.spatial()),
            Reduction::Still(novel) => (novel, samples.temporal()),
            _ => continue,
        };
        // The first method decides about units that the second one compares.
        let of_kept: Vec<Difference> = kept.iter().map(|&unit| differences[unit]).collect();
        let new = novel.kept(&of_kept);
        kept = new.into_iter().map(|index| kept[index]).collect();
        reduction.steps.push(method.left(kept.len()));
    }
    reduction.units = (kept.len() < grid.iter().product()).then_some(kept);
    reduction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two slices of 2 x 3 units of one sample.
    const SAMPLES: [u8; 12] = [5, 5, 9, 5, 7, 9, 5, 5, 9, 5, 5, 9];

    fn kept(chain: &str) -> Option<Vec<usize>> {
        let chain = chain.parse().unwrap();
        enter(&chain, MediaKind::Video, [2, 2, 3], || SAMPLES.to_vec()).units
    }

    #[test]
    fn equal_neighbors_are_dropped() {
        // Worked by hand: 1 equals 0, 3 equals 0, 5 equals 2; 4 differs by 2 from 1 and 3.
        assert_eq!(kept("duplicates"), Some(vec![0, 2, 4, 6, 8]));
        assert_eq!(kept("duplicates:2"), Some(vec![0, 2, 6, 8]));
        assert_eq!(kept("duplicates:25%"), Some(vec![0, 2, 6]));
        // Unit 10 differs from 4, and all others of its slice are around it.
        assert_eq!(kept("still"), None);
        assert_eq!(kept("still:60%"), Some(vec![0, 1, 2, 3, 4, 5, 10]));
        assert_eq!(kept("still:2"), Some(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(kept("duplicates,still:2"), Some(vec![0, 2, 4]));
        assert_eq!(kept("random:0.5"), None);
    }

    /// In the second of two slices of 3 x 5 units, the one at row 0 and column 1 changes.
    #[test]
    fn a_change_keeps_its_surroundings() {
        let mut samples = [7; 30];
        samples[16] = 9;
        let kept = |chain: &str| {
            let chain = chain.parse().unwrap();
            let samples = || samples.to_vec();
            enter(&chain, MediaKind::Video, [2, 3, 5], samples).units
        };
        let new = |units: &[usize]| Some((0..15).chain(units.iter().copied()).collect());
        assert_eq!(kept("still"), new(&[15, 16, 17, 20, 21, 22]));
        assert_eq!(kept("still:2"), new(&[]));
        // A share of 16 units: the change itself comes first.
        assert_eq!(kept("still:54%"), new(&[16]));
        assert_eq!(kept("still:60%"), new(&[15, 16, 17]));
    }

    #[test]
    fn an_image_of_new_units_is_kept_whole() {
        let chain = "duplicates".parse().unwrap();
        let reduction = enter(&chain, MediaKind::Image, [1, 2, 2], || vec![1, 2, 3, 4]);
        assert_eq!(reduction.units, None);
        assert_eq!(reduction.steps[0].tokens, 4);
        // Only units of videos can be still.
        let chain = "still".parse().unwrap();
        let reduction = enter(&chain, MediaKind::Image, [2, 1, 1], || vec![7, 7]);
        assert_eq!((reduction.units, reduction.steps.len()), (None, 0));
    }
}
