//! How a record is kept in memory, and whether it fits.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use edge_lmm::health::{Memory, System};
use edge_lmm::map::Mapping;
use edge_lmm::needs::{Demand, Scenario};
use edge_lmm::report::bytes;
use edge_lmm::{Device, Record};

/// Positions that an answer is taken to need before its prompt is known.
const CONTEXT: usize = 2048;

/// The mapping of the record.
#[derive(Debug, Clone, Args)]
pub struct MemoryOptions {
    /// Read the whole record at the start, instead of when a weight is first used
    #[arg(long)]
    prefault: bool,
    /// Keep the record in memory even when other programs need room
    #[arg(long)]
    mlock: bool,
    /// Start even if the memory is too small for the model
    #[arg(long)]
    ignore_memory: bool,
}

impl MemoryOptions {
    /// Opens a record, if it fits into the memory that the device has.
    pub fn open(&self, path: &Path, device: Device) -> anyhow::Result<Record> {
        let mapping = Mapping {
            prefault: self.prefault,
            lock: self.mlock,
            trust: false,
        };
        if !self.ignore_memory {
            // Before anything is read at once or locked.
            let trust = Mapping {
                trust: true,
                ..Mapping::default()
            };
            let (owner, memory) = match own_memory(device) {
                Some(memory) => ("the GPU", Some(memory)),
                None => ("the machine", System::default().memory()),
            };
            check(&Record::open_with(path, trust)?, owner, memory)?;
        }
        Ok(Record::open_with(path, mapping)?)
    }
}

/// The memory of a device that has its own; that of a Jetson's GPU is the machine's.
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

/// Refuses a record that cannot fit, with the numbers; `owner` has the memory.
fn check(record: &Record, owner: &str, memory: Option<Memory>) -> anyhow::Result<()> {
    // A system that does not tell is trusted.
    let Some(memory) = memory else {
        return Ok(());
    };
    let scenario = Scenario {
        context: CONTEXT,
        picture: None,
    };
    let demand = Demand::of_record(record, &scenario)?;
    let (needs, usable) = (demand.needs, memory.usable());
    if needs.total() <= usable {
        return Ok(());
    }
    let size = |n: u64| bytes(n as usize);
    let limit = match memory.group {
        _ if memory.process == Some(usable) => "the limit of this process leaves".to_owned(),
        Some(group) if group < memory.available => "this process's control group leaves".to_owned(),
        _ => format!("{owner} has available"),
    };
    bail!(
        "{} does not fit into memory: it needs about {} (weights {}, keys and values of {} \
         positions {}, activations {}, program {}), {limit} {} of {}; use a smaller or more \
         strongly quantized record, end other programs, or try anyway with --ignore-memory",
        record.path().display(),
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
            "/../models/demo/qwen2vl-tiny.bpk"
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
        check(&record, "the machine", Some(memory))
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

    #[test]
    fn the_limit_of_a_control_group_counts() {
        let message = refusal(512 << 20, Some(8 << 20)).expect("a refusal");
        assert!(
            message.contains("control group leaves 8.0 MiB"),
            "{message}"
        );
    }
}
