//! Checks of a model's memory estimate against a device.

use serde::Serialize;

use crate::profile::Device;

/// Memory estimate of a model that answers a request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The record. It is mapped, not copied, but every token reads nearly all of it: pages that do
    /// not stay in memory are read from disk again for every token.
    pub weights: u64,
    /// Keys and values of the context.
    pub cache: u64,
    /// Intermediate values of the largest stage.
    pub activations: u64,
    /// The program, tokenizer and template.
    pub program: u64,
}

impl MemoryEstimate {
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        [self.weights, self.cache, self.activations, self.program]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Comparison of a memory estimate with the memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// `true` if the model fits.
    pub fits: bool,
    /// Estimated bytes.
    pub needed: u64,
    /// Usable bytes.
    pub usable: u64,
}

impl Fit {
    /// Compares an estimate with the usable memory of a device.
    pub fn new(estimate: &MemoryEstimate, device: &Device) -> Self {
        let (needed, usable) = (estimate.total(), device.usable_bytes());
        Self {
            fits: needed <= usable,
            needed,
            usable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::device;

    #[test]
    fn what_the_system_keeps_counts() {
        let pi = device("raspberry-pi-4-4gb").unwrap();
        let estimate = |weights| MemoryEstimate {
            weights,
            cache: 1 << 20,
            activations: 0,
            program: 0,
        };
        assert!(Fit::new(&estimate(3 << 30), &pi).fits);
        assert!(!Fit::new(&estimate((4 << 30) - (2 << 20)), &pi).fits);
    }

    #[test]
    fn absurd_sizes_do_not_wrap_around() {
        let pi = device("raspberry-pi-4-8gb").unwrap();
        let estimate = MemoryEstimate {
            weights: u64::MAX,
            cache: u64::MAX,
            activations: 1,
            program: 1,
        };
        assert!(!Fit::new(&estimate, &pi).fits);
    }
}
