//! Memory: whether a model or a request fits, and the allocator of a program.
//!
//! [`Device::load_checked`](crate::Device::load_checked) refuses a model that cannot fit, and a
//! [`RequestEstimator`](crate::RequestEstimator) a request, before memory is taken for it.
//!
//! A program that answers should call [`keep_large_blocks`] at its start. With the
//! [`CountingAllocator`] as its global allocator, timing shows the heap use of each stage.

use std::fmt;

use edge_lmm_ops::Format;
use edge_lmm_targets::MemoryEstimate;

use crate::device::Device;
use crate::estimate::ResourceEstimate;
use crate::health::{Memory, System};
use crate::units::bytes;

pub use edge_lmm_kernels::memory::{
    CountingAllocator, current_bytes, keep_large_blocks, peak_bytes, reset_peak,
};

/// Result of a memory check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fit {
    /// The model fits with all of its weights.
    Whole,
    /// The model fits with the weights of one stage at a time; the others are read from disk again.
    OneStageAtATime,
}

/// Limit of the memory that a program can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// The available memory of the machine.
    Machine,
    /// The free memory of the GPU.
    Gpu,
    /// The limit of the process's control group.
    ControlGroup,
    /// The limit on the process's address space.
    AddressSpace,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "the machine has available",
            Self::Gpu => "the GPU has available",
            Self::ControlGroup => "this process's control group leaves",
            Self::AddressSpace => "this process's address space limit leaves",
        })
    }
}

/// Subject of a memory check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// The model of the named record.
    Model(String),
    /// A request.
    Request,
}

impl Subject {
    fn advice(&self) -> &'static str {
        match self {
            Self::Model(_) => "use a smaller or more strongly quantized record",
            Self::Request => "use smaller or fewer images, fewer frames or a shorter answer",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(name) => f.write_str(name),
            Self::Request => f.write_str("the request"),
        }
    }
}

/// Memory is too small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{subject} does not fit into memory: it needs about {} (weights {}, keys and values of \
     {context} positions {}, activations {}, program {}), {bound} {} of {}; {}, or end other \
     programs",
    size(estimate.total()), size(estimate.weights), size(estimate.cache),
    size(estimate.activations), size(estimate.program), size(*usable), size(*total), subject.advice()
)]
#[non_exhaustive]
pub struct MemoryError {
    /// Subject that does not fit.
    pub subject: Subject,
    /// Estimated memory.
    pub estimate: MemoryEstimate,
    /// Positions in the key-value cache.
    pub context: usize,
    /// Limit that applies.
    pub bound: Bound,
    /// Usable bytes.
    pub usable: u64,
    /// Total bytes of the machine or GPU.
    pub total: u64,
}

fn size(n: u64) -> String {
    bytes(n as usize)
}

/// Check against the memory of a device, measured when the check is created.
#[derive(Debug, Clone)]
pub struct MemoryCheck {
    /// `None` if the system does not report it; everything then fits.
    memory: Option<Memory>,
    /// `true` if the device has its own memory.
    gpu: bool,
    /// `true` if weights can be read from disk again.
    mapped: bool,
}

impl MemoryCheck {
    /// Compares with `memory` instead of the memory of the device.
    #[must_use]
    pub fn with_memory(self, memory: Memory) -> Self {
        Self {
            memory: Some(memory),
            ..self
        }
    }

    /// Measures the memory of a device. The GPU of a Jetson shares the memory of the machine.
    pub fn new(device: Device) -> Self {
        let own = own_memory(device);
        Self {
            gpu: own.is_some(),
            memory: own.or_else(|| System::default().memory()),
            mapped: device == Device::Cpu,
        }
    }

    /// Requires that all weights stay in memory, as for a locked record.
    #[must_use]
    pub fn locked(mut self) -> Self {
        self.mapped = false;
        self
    }

    /// Compares an estimate with the memory of the device.
    ///
    /// # Errors
    /// If memory is too small, with the numbers.
    pub fn check(&self, estimate: &ResourceEstimate, subject: Subject) -> Result<Fit, MemoryError> {
        let Some(memory) = self.memory else {
            return Ok(Fit::Whole);
        };
        let usable = memory.usable();
        if estimate.memory.total() <= usable {
            return Ok(Fit::Whole);
        }
        // A GPU holds all weights in its own memory.
        if self.mapped && estimate.minimum() <= usable {
            return Ok(Fit::OneStageAtATime);
        }
        Err(MemoryError {
            subject,
            estimate: estimate.memory,
            context: estimate.context,
            bound: match usable {
                n if memory.process == Some(n) => Bound::AddressSpace,
                n if memory.group == Some(n) => Bound::ControlGroup,
                _ if self.gpu => Bound::Gpu,
                _ => Bound::Machine,
            },
            usable,
            total: memory.total,
        })
    }
}

/// Returns the memory of a device that has its own.
fn own_memory(device: Device) -> Option<Memory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let gpu = crate::cuda::gpu(index).ok()?;
            let available = crate::cuda::free_memory(index).ok()?;
            (!gpu.integrated).then_some(Memory {
                total: gpu.memory,
                available,
                group: None,
                process: None,
                swap: 0,
                zram: 0,
            })
        }
        _ => None,
    }
}

/// Returns the format of the first weight of the vision encoder.
pub(crate) fn vision_format(info: &edge_lmm_record::RecordInfo) -> Option<Format> {
    let mut formats = info.formats.iter();
    let first = formats.find(|(name, _)| name.starts_with("vision."));
    first.map(|(_, format)| format.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;
    use crate::estimate::Scenario;

    fn estimate() -> ResourceEstimate {
        let record = Record::from_static(edge_lmm_models::demo::RECORD, "the demo");
        let scenario = Scenario {
            context: 2048,
            image_size: None,
            drafts: true,
        };
        let record = record.expect("the demo's record opens");
        ResourceEstimate::of_record(&record, &scenario).expect("an estimate")
    }

    fn outcome(available: u64, group: Option<u64>, mapped: bool) -> Result<Fit, MemoryError> {
        let memory = Memory {
            total: 1 << 30,
            available,
            group,
            process: None,
            swap: 0,
            zram: 0,
        };
        let check = MemoryCheck {
            memory: Some(memory),
            gpu: false,
            mapped,
        };
        check.check(&estimate(), Subject::Model("demo.bpk".to_owned()))
    }

    #[test]
    fn what_fits_is_let_through() {
        assert_eq!(outcome(512 << 20, None, false), Ok(Fit::Whole));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let message = outcome(10 << 20, None, false).unwrap_err().to_string();
        for word in [
            "demo.bpk does not fit",
            "the machine has available 10.0 MiB of 1.0 GiB",
        ] {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
        assert!(!message.contains("--"), "{message}");
    }

    /// Weights are mapped: encoder and language model can take turns in memory.
    #[test]
    fn one_stage_at_a_time_is_enough() {
        let estimate = estimate();
        assert!(estimate.minimum() < estimate.memory.total());
        let least = estimate.minimum();
        assert_eq!(outcome(least, None, true), Ok(Fit::OneStageAtATime));
        assert!(outcome(least, None, false).is_err());
        assert!(outcome(least - 1, None, true).is_err());
    }

    #[test]
    fn the_limit_of_a_control_group_counts() {
        let error = outcome(512 << 20, Some(8 << 20), false).unwrap_err();
        assert_eq!((error.bound, error.usable), (Bound::ControlGroup, 8 << 20));
    }
}
