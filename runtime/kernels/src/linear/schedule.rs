//! Division of work into tasks.

use std::ops::Range;

/// Splits the index of a task in a grid of `pieces` columns into its row and the range of its column, when
/// `0..len` is divided into pieces of `size`.
pub(super) fn grid_task(
    index: usize,
    pieces: usize,
    len: usize,
    size: usize,
) -> (usize, Range<usize>) {
    let start = index % pieces * size;
    (index / pieces, start..(start + size).min(len))
}

/// Divides `0..len` into pieces of decreasing size (guided self-scheduling: Polychronopoulos & Kuck 1987), so
/// that all threads finish at about the same time even if one starts late. A piece is half of an equal share
/// of the rest, but at least `least`, and even if possible, because some kernels compute panels in pairs.
/// Returns the bounds of the pieces, from 0 to `len`.
pub(super) fn guided(len: usize, least: usize, threads: usize) -> Vec<usize> {
    let mut starts = vec![0];
    let mut start = 0;
    while start < len {
        let size = ((len - start) / (2 * threads)).max(least);
        start = (start + size.next_multiple_of(2)).min(len);
        starts.push(start);
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn guided_pieces_cover_everything_once(len in 0usize..5000, least in 1usize..40, threads in 1usize..7) {
            let starts = guided(len, least, threads);
            prop_assert_eq!((starts[0], *starts.last().unwrap()), (0, len));
            let sizes: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            for (i, size) in sizes.iter().enumerate() {
                let last = i + 1 == sizes.len();
                prop_assert!(last || (*size >= least && size % 2 == 0), "{:?}", sizes);
            }
            prop_assert!(sizes.is_sorted_by(|a, b| a >= b), "{:?}", sizes);
        }
    }
}
