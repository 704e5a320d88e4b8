//! Decoded audio and its limits.

use super::budget;
use super::error::MediaError;

/// Maximum samples per channel: 35 minutes at 48 kHz.
pub(super) const MAX_SAMPLES: usize = 100_000_000;

/// Mono audio.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Samples from -1 to 1; integers of n bits are divided by 2^(n-1). Channels are averaged.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
}

impl Audio {
    /// Creates audio and checks that it has samples and that all are finite.
    pub(super) fn checked(
        format: &'static str,
        samples: Vec<f32>,
        sample_rate: u32,
    ) -> Result<Self, MediaError> {
        if samples.is_empty() {
            return Err(MediaError::damaged(format, "it has no samples"));
        }
        if let Some(at) = samples.iter().position(|v| !v.is_finite()) {
            let message = format!("sample {at} is {}, expected a finite number", samples[at]);
            return Err(MediaError::damaged(format, message));
        }
        Ok(Self {
            samples,
            sample_rate,
        })
    }
}

/// Checks that this many samples of one channel fit into memory.
pub(super) fn check_len(samples: usize) -> Result<(), MediaError> {
    if samples > MAX_SAMPLES {
        return Err(MediaError::TooLong { limit: MAX_SAMPLES });
    }
    budget::check(samples as u64 * size_of::<f32>() as u64)
}
