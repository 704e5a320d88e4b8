//! Mapping of a record and memory checks.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use edge_lmm::health::{Memory, System};
use edge_lmm::map::Mapping;
use edge_lmm::needs::{Demand, Plan, Scenario};
use edge_lmm::report::bytes;
use edge_lmm::{Device, Record};
use edge_lmm_kernels::{Format, peak, pool};
use edge_lmm_models::media::MediaInput;

/// Context length assumed for an answer whose prompt is not yet known.
const CONTEXT: usize = 2048;

/// Options for the mapping of the record.
#[derive(Debug, Clone, Args)]
pub struct MemoryOptions {
    /// Read the whole record at startup instead of on demand
    #[arg(long)]
    prefault: bool,
    /// Lock the record in memory, so that it is not evicted
    #[arg(long)]
    mlock: bool,
    /// Start even if memory is too small for the model
    #[arg(long)]
    ignore_memory: bool,
}

impl MemoryOptions {
    /// Opens a record if it fits into the memory of the device.
    pub fn open(&self, path: &Path, device: Device) -> anyhow::Result<Record> {
        let mapping = Mapping {
            prefault: self.prefault,
            lock: self.mlock,
            trust: false,
        };
        if !self.ignore_memory {
            // Checked before anything is read or locked.
            let trust = Mapping {
                trust: true,
                ..Mapping::default()
            };
            let scenario = Scenario {
                context: CONTEXT,
                picture: None,
            };
            let demand = Demand::of_record(&Record::open_with(path, trust)?, &scenario)?;
            let fit = check(
                &demand,
                &path.display().to_string(),
                "use a smaller record or one with fewer bits per weight",
                device == Device::Cpu && !self.mlock,
                memory_of(device),
            )?;
            if fit == Fit::OneStageAtATime {
                log::warn!(
                    "{} does not fit into memory completely: encoder and language model alternate \
                     and are read from the disk again",
                    path.display()
                );
            }
        }
        Ok(Record::open_with(path, mapping)?)
    }

    /// Prepares memory estimates for requests with answers of up to `max_tokens` tokens.
    pub fn estimate(
        &self,
        record: &Record,
        device: Device,
        max_tokens: usize,
    ) -> anyhow::Result<RequestEstimate> {
        let mut formats = record.info().formats.iter();
        let vision = formats.find(|(name, _)| name.starts_with("vision."));
        Ok(RequestEstimate {
            plan: Plan::new(record)?,
            device,
            max_tokens,
            ignore_memory: self.ignore_memory,
            vision_format: vision.map(|(_, format)| format.0),
        })
    }
}

/// Returns the memory of a device with dedicated memory; a Jetson's GPU shares that of the machine.
fn own_memory(device: Device) -> Option<Memory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let gpu = edge_lmm::cuda::gpu(index).ok()?;
            let available = edge_lmm::cuda::free_memory(index).ok()?;
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

/// Returns the owner and the state of the memory that a device uses, if the system reports it.
fn memory_of(device: Device) -> (&'static str, Option<Memory>) {
    match own_memory(device) {
        Some(memory) => ("the GPU", Some(memory)),
        None => ("the machine", System::default().memory()),
    }
}

/// Estimator of the cost of a request before its encoders run.
pub struct RequestEstimate {
    plan: Plan,
    device: Device,
    max_tokens: usize,
    ignore_memory: bool,
    vision_format: Option<Format>,
}

/// Visual tokens from which the cost of a request is reported.
const LARGE_REQUEST: usize = 1024;
/// Fraction of the processor's peak that the vision encoder reaches; the rest is attention and
/// memory traffic.
const ENCODER_EFFICIENCY: f64 = 0.5;

impl RequestEstimate {
    /// Rejects a request that cannot fit into memory, and passes a note about a large one to
    /// `note`.
    ///
    /// # Errors
    /// If memory is too small. The message contains the numbers.
    pub fn check(
        &self,
        prompt_tokens: usize,
        media: &[MediaInput],
        note: impl FnOnce(&str),
    ) -> anyhow::Result<()> {
        let demand = self.plan.request(media, prompt_tokens, self.max_tokens);
        if !self.ignore_memory {
            let advice = "use smaller or fewer images (--image-tokens), fewer frames (--frames) or \
                          fewer --max-tokens";
            let mapped = self.device == Device::Cpu;
            check(
                &demand,
                "the request",
                advice,
                mapped,
                memory_of(self.device),
            )?;
        }
        let tokens = |medium: &MediaInput| match medium.values.is_empty() {
            true => 0,
            false => medium.tokens(),
        };
        let new_tokens: usize = media.iter().map(tokens).sum();
        if new_tokens >= LARGE_REQUEST {
            note(&self.note(&demand, new_tokens));
        }
        Ok(())
    }

    fn note(&self, demand: &Demand, tokens: usize) -> String {
        let vision = demand.stages.iter().find(|work| work.stage == "vision");
        let peak = match (self.device, self.vision_format) {
            (Device::Cpu, Some(format)) => peak::operations_per_second(&pool::global(), format),
            _ => None,
        };
        let time = match (vision, peak) {
            (Some(work), Some(peak)) => format!(
                ", which take about {:.0} s to encode on this machine",
                2.0 * work.macs as f64 / (ENCODER_EFFICIENCY * peak)
            ),
            _ => String::new(),
        };
        format!(
            "note: the media have {tokens} tokens{time}; --image-tokens MIN..MAX makes images \
             smaller, --frames N uses fewer frames of a video"
        )
    }
}

/// Degree to which a model fits into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// All weights fit.
    Whole,
    /// The weights of one stage at a time fit; the others are read from disk again.
    OneStageAtATime,
}

/// Rejects what cannot fit; the message contains the numbers. `owner` is that of the memory.
fn check(
    demand: &Demand,
    what: &str,
    advice: &str,
    mapped: bool,
    (owner, memory): (&str, Option<Memory>),
) -> anyhow::Result<Fit> {
    // Without figures from the system, the model is assumed to fit.
    let Some(memory) = memory else {
        return Ok(Fit::Whole);
    };
    let (needs, usable) = (demand.needs, memory.usable());
    let size = |n: u64| bytes(n as usize);
    if needs.total() <= usable {
        return Ok(Fit::Whole);
    }
    // A GPU keeps all weights in its own memory.
    if mapped && demand.least() <= usable {
        return Ok(Fit::OneStageAtATime);
    }
    let limit = match usable {
        n if memory.process == Some(n) => "this process's address space limit leaves".to_owned(),
        n if memory.group == Some(n) => "this process's control group leaves".to_owned(),
        _ => format!("{owner} has available"),
    };
    bail!(
        "{what} does not fit into memory: it needs about {} (weights {}, keys and values of {} \
         positions {}, activations {}, program {}), {limit} {} of {}; {advice}, end other programs, \
         or try anyway with --ignore-memory",
        size(needs.total()),
        size(needs.weights),
        demand.context,
        size(needs.cache),
        size(needs.activations),
        size(needs.program),
        size(usable),
        size(memory.total),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(available: u64, group: Option<u64>) -> Option<String> {
        let record = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/demo/qwen2vl-tiny.bpk"
        );
        let record = Record::open(record.as_ref()).expect("the demo's record opens");
        let memory = Memory {
            total: 1 << 30,
            available,
            group,
            process: None,
            swap: 0,
            zram: 0,
        };
        let scenario = Scenario {
            context: CONTEXT,
            picture: None,
        };
        let demand = Demand::of_record(&record, &scenario).expect("an estimate");
        check(
            &demand,
            "the record",
            "use less",
            false,
            ("the machine", Some(memory)),
        )
        .err()
        .map(|error| error.to_string())
    }

    #[test]
    fn what_fits_is_let_through() {
        assert_eq!(refusal(512 << 20, None), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let message = refusal(10 << 20, None).expect("a refusal");
        for word in [
            "the machine has available 10.0 MiB of 1.0 GiB",
            "--ignore-memory",
        ] {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
    }

    /// Weights are mapped, so encoder and language model can alternate in memory.
    #[test]
    fn one_stage_at_a_time_is_enough() {
        let record = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/demo/qwen2vl-tiny.bpk"
        );
        let record = Record::open(record.as_ref()).expect("the demo's record opens");
        let scenario = Scenario {
            context: CONTEXT,
            picture: None,
        };
        let demand = Demand::of_record(&record, &scenario).expect("an estimate");
        assert!(demand.least() < demand.needs.total());
        let outcome = |available: u64, mapped: bool| {
            let memory = Memory {
                total: 1 << 30,
                available,
                group: None,
                process: None,
                swap: 0,
                zram: 0,
            };
            check(
                &demand,
                "the record",
                "use less",
                mapped,
                ("the machine", Some(memory)),
            )
        };
        assert!(outcome(demand.least(), true).is_ok());
        assert!(outcome(demand.least(), false).is_err());
        assert!(outcome(demand.least() - 1, true).is_err());
    }

    #[test]
    fn the_limit_of_a_control_group_counts() {
        let message = refusal(512 << 20, Some(8 << 20)).expect("a refusal");
        assert!(
            message.contains("control group leaves 8.0 MiB"),
            "{message}"
        );
    }
}
