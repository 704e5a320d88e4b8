//! Selection of rows and columns of the source tensors of a weight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::ModelError;

/// Rows or columns of a weight, and their places in its source tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// All of the source.
    All(usize),
    /// Some of them.
    Some {
        /// Rows or columns of the source.
        of: usize,
        /// The selected ones, in the weight's order; each is below `of`.
        indices: Arc<[u32]>,
    },
}

impl Extent {
    /// Returns the number of rows or columns of the weight.
    pub fn len(&self) -> usize {
        match self {
            Self::All(len) => *len,
            Self::Some { indices, .. } => indices.len(),
        }
    }

    /// Returns `true` if nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of rows or columns of the source.
    pub fn source_len(&self) -> usize {
        match self {
            Self::All(len) => *len,
            Self::Some { of, .. } => *of,
        }
    }

    /// Returns the row or column of the source at `place` of the weight.
    pub fn source_index(&self, place: usize) -> usize {
        match self {
            Self::All(_) => place,
            Self::Some { indices, .. } => indices[place] as usize,
        }
    }

    /// Returns the places `range` of the weight as ranges of the source, as long as possible and in
    /// order.
    pub fn runs(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut place = range.start;
        std::iter::from_fn(move || {
            if place >= range.end {
                return None;
            }
            let start = self.source_index(place);
            let len = match self {
                Self::All(_) => range.end - place,
                Self::Some { .. } => (1..range.end - place)
                    .find(|&i| self.source_index(place + i) != start + i)
                    .unwrap_or(range.end - place),
            };
            place += len;
            Some(start..start + len)
        })
    }

    /// Concatenates extents of one source, such as the parts of a fused projection.
    pub fn stacked(parts: &[&Self]) -> Self {
        let of = parts.iter().map(|part| part.source_len()).sum();
        if parts.iter().all(|part| matches!(part, Self::All(_))) {
            return Self::All(of);
        }
        let mut indices = Vec::new();
        let mut first = 0;
        for part in parts {
            indices.extend((0..part.len()).map(|place| (first + part.source_index(place)) as u32));
            first += part.source_len();
        }
        Self::Some {
            of,
            indices: indices.into(),
        }
    }

    /// Returns an extent of units of `size` rows or columns each, where `self` counts units.
    fn in_units_of(&self, size: usize) -> Self {
        match self {
            Self::All(len) => Self::All(len * size),
            Self::Some { of, indices } => Self::Some {
                of: of * size,
                indices: indices
                    .iter()
                    .flat_map(|&unit| (0..size as u32).map(move |i| unit * size as u32 + i))
                    .collect(),
            },
        }
    }
}

impl From<usize> for Extent {
    fn from(len: usize) -> Self {
        Self::All(len)
    }
}

impl From<&Self> for Extent {
    fn from(extent: &Self) -> Self {
        extent.clone()
    }
}

/// The kept indices of a checkpoint's dimensions, by the dimension's name: the path of the module
/// that declares it and a word for the counted units, such as `text.layers.3.ffn`, `text.layers` or
/// `text.vocabulary`. Layers have their numbers in the record. Other dimensions stay whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection(BTreeMap<String, Extent>);

impl Selection {
    /// Keeps `indices` of the `of` units of a dimension, in that order. The configuration after
    /// pruning must count as many units as there are indices.
    ///
    /// # Errors
    /// If there are no indices, or one is not below `of` or occurs twice.
    pub fn keep(&mut self, dimension: &str, of: usize, indices: &[u32]) -> Result<(), ModelError> {
        let invalid = |reason: String| ModelError::config(format!("{dimension}: {reason}"));
        if indices.is_empty() {
            return Err(invalid("nothing of it is kept".to_owned()));
        }
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(format!("number {} is kept twice", pair[0])));
        }
        match sorted.last() {
            Some(&last) if last as usize >= of => Err(invalid(format!(
                "number {last} is kept, the checkpoint has {of}, counted from 0"
            ))),
            _ => {
                let indices = indices.into();
                self.0
                    .insert(dimension.to_owned(), Extent::Some { of, indices });
                Ok(())
            }
        }
    }

    /// Returns the names of the selected dimensions.
    pub fn dimensions(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the number of units that are kept of a dimension, if some are left out.
    pub fn len_of(&self, dimension: &str) -> Option<usize> {
        self.0.get(dimension).map(Extent::len)
    }

    /// Returns the selection without the dimensions that `dropped` names, which stay whole.
    #[must_use]
    pub fn without(&self, dropped: impl Fn(&str) -> bool) -> Self {
        let kept = self.0.iter().filter(|(name, _)| !dropped(name));
        Self(
            kept.map(|(name, extent)| (name.clone(), extent.clone()))
                .collect(),
        )
    }

    /// Returns the extent of a dimension that has `count` units of `size` rows or columns after pruning.
    pub(super) fn extent(
        &self,
        dimension: &str,
        count: usize,
        size: usize,
    ) -> Result<Extent, ModelError> {
        match self.0.get(dimension) {
            None => Ok(Extent::All(count * size)),
            Some(kept) if kept.len() == count => Ok(kept.in_units_of(size)),
            Some(kept) => Err(ModelError::config(format!(
                "{} of {} are kept of {dimension}, the configuration after pruning has {count}",
                kept.len(),
                kept.source_len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(of: usize, indices: &[u32]) -> Extent {
        Extent::Some {
            of,
            indices: indices.into(),
        }
    }

    #[test]
    fn runs_are_as_long_as_possible() {
        let runs = |extent: &Extent, range| extent.runs(range).collect::<Vec<_>>();
        let kept = some(9, &[1, 2, 3, 7, 5, 6]);
        assert_eq!(runs(&kept, 0..6), [1..4, 7..8, 5..7]);
        assert_eq!(runs(&kept, 2..5), [3..4, 7..8, 5..6]);
        assert_eq!(runs(&Extent::All(9), 2..5), vec![2..5]);
        assert!(runs(&kept, 3..3).is_empty());
    }

    #[test]
    fn parts_of_a_fused_tensor_are_counted_on() {
        let (heads, whole) = (some(2, &[1]).in_units_of(3), Extent::All(2));
        assert_eq!(heads, some(6, &[3, 4, 5]));
        let fused = Extent::stacked(&[&heads, &whole, &heads]);
        assert_eq!(fused, some(14, &[3, 4, 5, 6, 7, 11, 12, 13]));
        assert_eq!(Extent::stacked(&[&whole, &whole]), Extent::All(4));
    }

    #[test]
    fn impossible_selections_are_refused() {
        let mut selection = Selection::default();
        for (indices, part) in [
            (&[][..], "nothing"),
            (&[0, 2, 0], "0 is kept twice"),
            (&[4], "has 4"),
        ] {
            let error = selection.keep("text.layers.0.ffn", 4, indices).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        selection.keep("text.layers.0.ffn", 4, &[0, 3]).unwrap();
        assert!(selection.extent("text.layers.0.ffn", 3, 1).is_err());
        assert_eq!(
            selection.extent("text.layers.0.ffn", 2, 1).unwrap(),
            some(4, &[0, 3])
        );
        assert_eq!(
            selection.extent("text.layers.1.ffn", 3, 1).unwrap(),
            Extent::All(3)
        );
    }
}
