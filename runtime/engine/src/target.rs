//! Report on whether a model fits a device and on its best-case speed, as text and JSON.

use std::fmt;

use edge_lmm_targets::{Device, Estimate, Fit, MemoryEstimate};
use serde::Serialize;

use crate::columns::columns;
use crate::estimate::ResourceEstimate;
use crate::units::bytes;

/// Memory and speed of a model on a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetReport {
    /// The device.
    pub device: Device,
    /// Positions in the key-value cache.
    pub context: usize,
    /// Width and height of the image.
    pub image_size: (usize, usize),
    /// Tokens of the image.
    pub visual_tokens: usize,
    /// Estimated memory.
    #[serde(rename = "needs")]
    pub memory: MemoryEstimate,
    /// Comparison with the memory of the device.
    pub fit: Fit,
    /// Estimated minimum time of each stage; empty for a device of unknown speed.
    pub estimates: Vec<Estimate>,
}

impl TargetReport {
    /// Compares an estimate with a device.
    pub fn new(device: Device, estimate: ResourceEstimate, image_size: (usize, usize)) -> Self {
        Self {
            context: estimate.context,
            image_size,
            visual_tokens: estimate.visual_tokens,
            memory: estimate.memory,
            fit: Fit::new(&estimate.memory, &device),
            estimates: estimate
                .stages
                .into_iter()
                .filter_map(|work| Estimate::new(work, &device))
                .collect(),
            device,
        }
    }

    /// Returns one line that says whether the model fits, with the numbers.
    pub fn verdict(&self) -> String {
        let size = |n: u64| bytes(n as usize);
        format!(
            "{} {}: needs about {} (weights {}, keys and values of {} positions {}, activations \
             {}, program {}), usable are {} of {}",
            if self.fit.fits {
                "fits"
            } else {
                "does not fit"
            },
            self.device.title,
            size(self.fit.needed),
            size(self.memory.weights),
            self.context,
            size(self.memory.cache),
            size(self.memory.activations),
            size(self.memory.program),
            size(self.fit.usable),
            size(self.device.memory_bytes),
        )
    }
}

impl fmt::Display for TargetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict())?;
        if self.estimates.is_empty() {
            return write!(f, "\nthe speed of {} is not known", self.device.title);
        }
        let (width, height) = self.image_size;
        write!(
            f,
            "\nestimate, at best (from {:.1} GB/s and {} x {} at {} MHz, not measured), with an \
             image of {width} x {height} ({} tokens):\n{}",
            self.device.bandwidth.unwrap_or(0.0) / 1e9,
            self.device.cpu.cores,
            self.device.cpu.core,
            self.device.cpu.clock_mhz,
            self.visual_tokens,
            self.table(),
        )
    }
}

impl TargetReport {
    fn table(&self) -> String {
        let header = [
            "stage", "tokens", "read", "GMACs", "at least", "limit", "tokens/s",
        ];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.estimates.iter().map(|estimate| {
            let work = &estimate.work;
            [
                work.stage.to_owned(),
                work.tokens.to_string(),
                bytes(work.bytes as usize),
                format!("{:.2}", work.macs as f64 / 1e9),
                format!("{:.2} ms", estimate.seconds() * 1e3),
                estimate.limit().to_owned(),
                format!("{:.1}", work.tokens as f64 / estimate.seconds()),
            ]
        }));
        columns(&rows)
    }
}

/// Parses `WIDTHxHEIGHT`.
///
/// # Errors
/// If `text` is not of that form.
pub fn parse_size(text: &str) -> Result<(usize, usize), String> {
    text.split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        .filter(|&(width, height): &(usize, usize)| width > 0 && height > 0)
        .ok_or_else(|| "expected WIDTHxHEIGHT, for example 640x480".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("640x480"), Ok((640, 480)));
        assert!(parse_size("0x480").is_err());
        assert!(parse_size("640").is_err());
    }
}
