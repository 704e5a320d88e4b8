//! Choice of key frames by their differences.

/// Time and change of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    /// Seconds since the first frame.
    pub time: f64,
    /// Difference from the frame before; infinite for the first one.
    pub difference: f64,
}

/// Times that differ by less are equal: half a millisecond.
const SAME_TIME: f64 = 5e-4;

/// Chooses `count` frames: the first one and those that differ most from the frame before. If fewer
/// frames differ at all, the rest are the frames farthest in time from the chosen ones. Among equal
/// frames, the earlier one is chosen. Returns indices in order.
pub(super) fn choose(changes: &[Change], count: usize) -> Vec<usize> {
    if count >= changes.len() {
        return (0..changes.len()).collect();
    }
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by(|&a, &b| changes[b].difference.total_cmp(&changes[a].difference));
    let differs = |&i: &usize| changes[i].difference > 0.0;
    let mut chosen: Vec<usize> = order.into_iter().filter(differs).take(count).collect();
    let distance = |i: usize, to: usize| (changes[i].time - changes[to].time).abs();
    // Distance of each frame from the nearest chosen one.
    let mut distances: Vec<f64> = (0..changes.len())
        .map(|i| {
            let distances = chosen.iter().map(|&to| distance(i, to));
            distances.fold(f64::INFINITY, f64::min)
        })
        .collect();
    let mut is_chosen = vec![false; changes.len()];
    chosen.iter().for_each(|&i| is_chosen[i] = true);
    while chosen.len() < count {
        let free = (0..changes.len()).filter(|&i| !is_chosen[i]);
        let farthest = free.reduce(|best, i| {
            let is_farther = distances[i] > distances[best] + SAME_TIME;
            if is_farther { i } else { best }
        });
        let Some(next) = farthest else { break };
        chosen.push(next);
        is_chosen[next] = true;
        for (i, nearest) in distances.iter_mut().enumerate() {
            *nearest = nearest.min(distance(i, next));
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses among frames at 30 per second with these differences; the first is infinite.
    fn chosen(differences: &[f64], count: usize) -> Vec<usize> {
        let changes: Vec<Change> = [f64::INFINITY]
            .iter()
            .chain(differences)
            .enumerate()
            .map(|(i, &difference)| Change {
                time: i as f64 / 30.0,
                difference,
            })
            .collect();
        choose(&changes, count)
    }

    #[test]
    fn the_first_frame_and_the_largest_changes_are_chosen() {
        let differences = [0.0, 3.0, 1.0, 0.0, 2.0, 0.0, 0.0];
        assert_eq!(chosen(&differences, 1), [0]);
        assert_eq!(chosen(&differences, 2), [0, 2]);
        assert_eq!(chosen(&differences, 3), [0, 2, 5]);
        assert_eq!(chosen(&differences, 4), [0, 2, 3, 5]);
        assert_eq!(chosen(&[1.0; 4], 3), [0, 1, 2]);
        assert_eq!(chosen(&[1.0; 4], 9), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn still_parts_are_covered() {
        // Frames 4 and 5 are equally far from 0 and 9, then 2, 6 and 7 from 0, 4 and 9.
        let mut differences = [0.0; 9];
        assert_eq!(chosen(&differences, 2), [0, 9]);
        assert_eq!(chosen(&differences, 3), [0, 4, 9]);
        assert_eq!(chosen(&differences, 4), [0, 2, 4, 9]);
        differences[1] = 1.0;
        assert_eq!(chosen(&differences, 3), [0, 2, 9]);
    }
}
