//! Choice of tokens without looking at them: baselines for the other methods.

/// Returns the seed of a name: its 64-bit FNV-1a hash
/// ([IETF draft](https://datatracker.ietf.org/doc/draft-eastlake-fnv/)).
pub fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// SplitMix64 (Steele et al. 2014, <https://doi.org/10.1145/2714064.2660195>).
fn split_mix(state: u64) -> u64 {
    let x = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns `count` of `tokens` tokens in random order of choice, sorted.
pub fn random(tokens: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tokens).collect();
    order.sort_by_key(|&token| split_mix(seed.wrapping_add(token as u64)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Returns `count` of `tokens` tokens at equal distances, in the middle of equal parts.
pub fn stride(tokens: usize, count: usize) -> Vec<usize> {
    let at = |i: usize| (2 * i + 1) * tokens / (2 * count);
    (0..count.min(tokens)).map(at).collect()
}

/// Returns the indices of the `count` largest scores, sorted. Of equal scores, the first ones are
/// taken.
pub fn largest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first values of the generator with seed 0 in its reference implementation, whose state
    /// advances by the constant.
    #[test]
    fn the_generator_is_the_published_one() {
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(seed_of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(seed_of("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn choices_are_sorted_and_distinct() {
        for count in [1, 7, 20] {
            let kept = random(20, count, 5);
            assert_eq!(kept.len(), count);
            assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(kept, random(20, count, 5));
        }
        assert_ne!(random(20, 7, 5), random(20, 7, 6));
        assert_eq!(stride(8, 4), [1, 3, 5, 7]);
        assert_eq!(stride(5, 5), [0, 1, 2, 3, 4]);
        assert!(stride(0, 0).is_empty());
        assert_eq!(largest(&[1.0, 3.0, 3.0, 2.0], 2), [1, 2]);
        assert_eq!(largest(&[2.0, 2.0, 2.0], 2), [0, 1]);
    }
}
