//! Whether a model fits a device and how fast it can be there, for people and as JSON.

use std::fmt;

use edge_lmm_targets::{Device, Estimate, Fit, Needs};
use serde::Serialize;

use crate::columns::columns;
use crate::needs::Demand;
use crate::report::bytes;

/// A model on a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetReport {
    /// The device.
    pub device: Device,
    /// Positions that keys and values are counted for.
    pub context: usize,
    /// The picture.
    pub picture: (usize, usize),
    /// Its tokens.
    pub visual_tokens: usize,
    /// Memory.
    pub needs: Needs,
    /// Whether it is enough.
    pub fit: Fit,
    /// The least time of each stage, an estimate; empty for a device of unknown speed.
    pub estimates: Vec<Estimate>,
}

impl TargetReport {
    /// Compares demand and device.
    pub fn new(device: Device, demand: Demand, picture: (usize, usize)) -> Self {
        Self {
            context: demand.context,
            picture,
            visual_tokens: demand.visual_tokens,
            needs: demand.needs,
            fit: Fit::new(&demand.needs, &device),
            estimates: demand
                .stages
                .into_iter()
                .filter_map(|work| Estimate::new(work, &device))
                .collect(),
            device,
        }
    }

    /// One line: whether it fits, with the numbers.
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
            size(self.needs.weights),
            self.context,
            size(self.needs.cache),
            size(self.needs.activations),
            size(self.needs.program),
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
        let (width, height) = self.picture;
        write!(
            f,
            "\nestimate, at best (from {:.1} GB/s and {} x {} at {} MHz, not measured), with a \
             picture of {width} x {height} ({} tokens):\n{}",
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

/// `WIDTHxHEIGHT`
///
/// # Errors
/// If it is not of that form.
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
