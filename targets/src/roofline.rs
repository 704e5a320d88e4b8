//! Best-case speed of a model by the roofline model of Williams, Waterman and Patterson (2009,
//! <https://doi.org/10.1145/1498765.1498785>): a stage takes at least as long as memory needs to
//! deliver its bytes and as the processor needs for its arithmetic.

use serde::Serialize;

use crate::profile::Device;

/// Work of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// Name of the stage.
    pub stage: &'static str,
    /// Tokens (patches for an encoder) processed.
    pub tokens: u64,
    /// Bytes read from memory.
    pub bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
}

/// The minimum time of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The work.
    #[serde(flatten)]
    pub work: Work,
    /// Minimum memory time in seconds.
    pub memory_seconds: f64,
    /// Minimum arithmetic time in seconds.
    pub compute_seconds: f64,
}

impl Estimate {
    /// Estimates the time on a device; `None` if its speed is unknown.
    ///
    /// Arithmetic counts as 8-bit products, the fastest that the kernels use.
    pub fn new(work: Work, device: &Device) -> Option<Self> {
        let (bandwidth, macs) = (device.bandwidth?, device.int8_macs()?);
        Some(Self {
            memory_seconds: work.bytes as f64 / bandwidth,
            compute_seconds: work.macs as f64 / macs,
            work,
        })
    }

    /// Returns the minimum time in seconds.
    pub fn seconds(&self) -> f64 {
        self.memory_seconds.max(self.compute_seconds)
    }

    /// Returns the limiting resource.
    pub fn limit(&self) -> &'static str {
        if self.memory_seconds >= self.compute_seconds {
            "memory"
        } else {
            "arithmetic"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Device, device};

    fn pi() -> Device {
        device("raspberry-pi-5").unwrap()
    }

    #[test]
    fn one_token_is_limited_by_memory_and_many_by_arithmetic() {
        // 1.5e9 parameters at 4 bits: one token reads all of them, 1000 tokens read them once.
        let work = |tokens: u64| Work {
            stage: "decode",
            tokens,
            bytes: 855_000_000,
            macs: 1_500_000_000 * tokens,
        };
        let one = Estimate::new(work(1), &pi()).unwrap();
        // 0.855 GB at 17.1 GB/s.
        assert!((one.seconds() - 0.05).abs() < 1e-12);
        assert_eq!(one.limit(), "memory");
        let many = Estimate::new(work(1000), &pi()).unwrap();
        // 1.5e12 products at 4 cores x 2.4 GHz x 32.
        assert!((many.seconds() - 1.5e12 / (4.0 * 2.4e9 * 32.0)).abs() < 1e-9);
        assert_eq!(many.limit(), "arithmetic");
    }

    #[test]
    fn a_machine_of_unknown_speed_has_no_estimate() {
        let work = Work {
            stage: "decode",
            tokens: 1,
            bytes: 1,
            macs: 1,
        };
        assert_eq!(Estimate::new(work, &device("host").unwrap()), None);
    }
}
