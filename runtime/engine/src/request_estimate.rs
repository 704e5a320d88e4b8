//! Estimates of the memory and time of a request before its encoders run.

use std::time::Duration;

use edge_lmm_kernels::{peak, pool};
use edge_lmm_models::media::MediaInput;

use crate::any_device::AnyEngine;
use crate::device::Device;
use crate::estimate::ResourceEstimate;
use crate::health::Memory;
use crate::memory::{MemoryCheck, MemoryError, Subject};
use crate::request::Request;

/// Share of the processor's peak that the vision encoder reaches; what is missing is attention and
/// memory traffic.
const ENCODER_EFFICIENCY: f64 = 0.5;

/// Estimates memory and time of a request before its encoders run, from
/// [`Event::Prepared`](crate::Event::Prepared).
#[derive(Clone)]
pub struct RequestEstimator {
    engine: AnyEngine,
    /// Memory to compare with instead of that of the device.
    memory: Option<Memory>,
}

impl RequestEstimator {
    /// Creates an estimator of requests to a model.
    pub fn new(engine: AnyEngine) -> Self {
        Self {
            engine,
            memory: None,
        }
    }

    /// Compares with `memory` instead of the memory that the device has at the time of a request.
    #[must_use]
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    fn memory_check(&self) -> MemoryCheck {
        let check = MemoryCheck::new(self.engine.device());
        match self.memory {
            Some(memory) => check.with_memory(memory),
            None => check,
        }
    }

    /// Estimates a request whose preprocessed media are `media` and whose prompt has `prompt_tokens`.
    /// A reduction inside the language model needs no more than this: its hidden states take the place
    /// of the embeddings, and the cache holds fewer positions.
    pub fn estimate(
        &self,
        request: &Request<'_>,
        media: &[MediaInput],
        prompt_tokens: usize,
    ) -> ResourceEstimate {
        self.engine.estimate(request, media, prompt_tokens)
    }

    /// Checks that a request fits into memory.
    ///
    /// # Errors
    /// If memory is too small, with the numbers.
    pub fn check(&self, estimate: &ResourceEstimate) -> Result<(), MemoryError> {
        let check = self.memory_check();
        check.check(estimate, Subject::Request).map(|_| ())
    }

    /// Estimates the time of the vision encoder from the peak throughput of the processor; `None`
    /// if there is nothing to encode or the peak is unknown.
    pub fn encoding_time(&self, estimate: &ResourceEstimate) -> Option<Duration> {
        let vision = estimate.stages.iter().find(|work| work.stage == "vision")?;
        let format = self.engine.vision_format()?;
        let peak = match self.engine.device() {
            Device::Cpu => peak::operations_per_second(&pool::global(), format)?,
            _ => return None,
        };
        let seconds = 2.0 * vision.macs as f64 / (ENCODER_EFFICIENCY * peak);
        Duration::try_from_secs_f64(seconds).ok()
    }
}
