//! Whether a model fits into a device's memory.

use serde::Serialize;

use crate::profile::Device;

/// Memory that a model needs while it answers, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// The record. It is mapped, not copied, but every token reads nearly all of it: what does not
    /// stay in memory is read from the disk again, token after token.
    pub weights: u64,
    /// Keys and values of the context.
    pub cache: u64,
    /// Intermediate values, the largest of the stages.
    pub activations: u64,
    /// The program, tokenizer and template.
    pub program: u64,
}

impl Needs {
    /// All together.
    pub fn total(&self) -> u64 {
        [self.weights, self.cache, self.activations, self.program]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Needs against what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Whether it fits.
    pub fits: bool,
    /// Bytes needed.
    pub needed: u64,
    /// Bytes there are.
    pub usable: u64,
}

impl Fit {
    /// Compares.
    pub fn new(needs: &Needs, device: &Device) -> Self {
        let (needed, usable) = (needs.total(), device.usable_bytes());
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
        let needs = |weights| Needs {
            weights,
            cache: 1 << 20,
            activations: 0,
            program: 0,
        };
        assert!(Fit::new(&needs(3 << 30), &pi).fits);
        assert!(!Fit::new(&needs((4 << 30) - (2 << 20)), &pi).fits);
    }

    #[test]
    fn absurd_sizes_do_not_wrap_around() {
        let pi = device("raspberry-pi-4-8gb").unwrap();
        let needs = Needs {
            weights: u64::MAX,
            cache: u64::MAX,
            activations: 1,
            program: 1,
        };
        assert!(!Fit::new(&needs, &pi).fits);
    }
}
