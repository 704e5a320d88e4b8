//! The choice of some questions of a dataset.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Returns the indices of at most `max` questions, in order. Every task gets the same number, as far
/// as it has that many questions: the first ones, or a random choice with a seed.
pub fn chosen(tasks: &[&str], max: Option<usize>, seed: Option<u64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    if let Some(seed) = seed {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }
    // The k-th question of each task belongs to round k.
    let mut counts = BTreeMap::new();
    let mut rounds: Vec<(usize, &str, usize)> = order
        .into_iter()
        .map(|index| {
            let count: &mut usize = counts.entry(tasks[index]).or_default();
            *count += 1;
            (*count, tasks[index], index)
        })
        .collect();
    rounds.sort_unstable();
    rounds.truncate(max.unwrap_or(usize::MAX));
    let mut chosen: Vec<usize> = rounds.into_iter().map(|(.., index)| index).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: [&str; 8] = ["a", "a", "a", "a", "b", "b", "c", "a"];

    #[test]
    fn the_first_of_every_task_are_chosen() {
        assert_eq!(chosen(&TASKS, Some(3), None), [0, 4, 6]);
        assert_eq!(chosen(&TASKS, Some(6), None), [0, 1, 2, 4, 5, 6]);
        assert_eq!(chosen(&TASKS, None, None).len(), 8);
        assert!(chosen(&[], Some(3), None).is_empty());
    }

    #[test]
    fn a_seed_chooses_others_but_always_the_same() {
        let seeds: Vec<Vec<usize>> = (0..20)
            .map(|seed| chosen(&TASKS, Some(3), Some(seed)))
            .collect();
        assert!(seeds.iter().any(|chosen| *chosen != seeds[0]));
        for (seed, first) in seeds.iter().enumerate() {
            assert_eq!(*first, chosen(&TASKS, Some(3), Some(seed as u64)));
            let tasks: Vec<&str> = first.iter().map(|&index| TASKS[index]).collect();
            assert!(
                ["a", "b", "c"].iter().all(|task| tasks.contains(task)),
                "{tasks:?}"
            );
        }
    }
}
