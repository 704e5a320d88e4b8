//! Random values in place of a tensor's.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Values that are uniformly distributed around a center. Each is a function of the seed and its
/// place, so that rows can be read in any order.
#[derive(Debug, Clone)]
pub(super) struct Random {
    key: u64,
    center: f32,
    spread: f32,
}

impl Random {
    /// Creates the values of the tensor `name`, which lie between `center - spread` and
    /// `center + spread`.
    pub(super) fn new(seed: u64, name: &str, center: f32, spread: f32) -> Self {
        Self {
            key: xxh3_64_with_seed(name.as_bytes(), seed),
            center,
            spread,
        }
    }

    /// Appends the elements `range`.
    pub(super) fn read(&self, range: Range<usize>, out: &mut Vec<f32>) {
        out.extend(range.map(|index| {
            let bits = mix(self.key.wrapping_add(index as u64)) >> 40;
            let uniform = bits as f32 / (1_u32 << 23) as f32 - 1.0;
            self.center + self.spread * uniform
        }));
    }
}

/// Returns the output of SplitMix64 (Steele, Lea and Flood 2014) for a counter.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_uniform_and_independent_of_the_order_of_reading() {
        let random = Random::new(1, "weight", 1.0, 0.5);
        let mut whole = Vec::new();
        random.read(0..10_000, &mut whole);
        let mut part = Vec::new();
        random.read(5_000..5_010, &mut part);
        assert_eq!(part, whole[5_000..5_010]);
        let mean = whole.iter().sum::<f32>() / whole.len() as f32;
        let variance = whole.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / whole.len() as f32;
        // The standard deviation of the mean of 10,000 values is 0.0029, and that of the variance
        // 0.00075.
        assert!((mean - 1.0).abs() < 0.015, "{mean}");
        assert!((variance - 0.25 / 3.0).abs() < 0.004, "{variance}");
        assert!(whole.iter().all(|value| (0.5..=1.5).contains(value)));
        let mut other = Vec::new();
        Random::new(2, "weight", 1.0, 0.5).read(0..10, &mut other);
        assert_ne!(other, whole[..10]);
    }
}
