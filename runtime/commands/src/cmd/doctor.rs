//! `edge-lmm doctor`: a description of this machine.

use clap::Args;
use edge_lmm::Device;
use edge_lmm::health::{Health, System};
use edge_lmm::record::FORMAT_VERSION;
use edge_lmm::units::bytes;
use edge_lmm_kernels::cpu::Isa;
use serde::Serialize;

use super::options::print_now;

/// Describes this machine: instruction sets, cores, memory and CUDA, and the causes of slowness:
/// heat, power, frequency governor, swap.
#[derive(Args)]
pub struct Cmd {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Compile, run and time every GPU kernel, and report the results
    #[arg(long)]
    cuda: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    architecture: &'static str,
    cores: usize,
    kernels: String,
    kernels_available: Vec<String>,
    memory_bytes: Option<u64>,
    available_bytes: Option<u64>,
    swap_bytes: Option<u64>,
    health: Health,
    cuda: String,
    devices: &'static [&'static str],
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        if self.cuda {
            return super::gpu::try_kernels(self.json);
        }
        let health = System::default().health();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            architecture: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernels: Isa::best().to_string(),
            kernels_available: Isa::available().iter().map(Isa::to_string).collect(),
            memory_bytes: health.memory.map(|memory| memory.total),
            available_bytes: health.memory.map(|memory| memory.usable()),
            swap_bytes: health.memory.map(|memory| memory.swap),
            health,
            cuda: super::gpu::summary(),
            devices: Device::BUILT,
        };
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            text(&report)
        };
        print_now(&format!("{text}\n"))
    }
}

fn text(report: &Report) -> String {
    let size = |n: u64| bytes(n as usize);
    let unknown = || "unknown".to_owned();
    let memory = report.health.memory.map_or_else(unknown, |memory| {
        let group = memory.group.map_or(String::new(), |group| {
            format!(", {} left by the control group", size(group))
        });
        format!(
            "{}, {} available{group}, swap {} ({} of it zram)",
            size(memory.total),
            size(memory.available),
            size(memory.swap),
            size(memory.zram),
        )
    });
    let lines = [
        ("cores", report.cores.to_string()),
        (
            "kernels",
            format!(
                "{} (available: {})",
                report.kernels,
                report.kernels_available.join(", ")
            ),
        ),
        ("memory", memory),
        ("CUDA", report.cuda.clone()),
        (
            "records",
            format!("packed layout {FORMAT_VERSION}, the same for every device"),
        ),
        ("board", report.health.board.clone().unwrap_or_else(unknown)),
        ("clock", clock(&report.health)),
        ("heat", temperatures(&report.health)),
        ("throttling", throttling(&report.health)),
    ];
    let mut text = format!("edge-lmm {} on {}", report.version, report.architecture);
    for (name, value) in lines {
        text += &format!("\n{name:10} {value}");
    }
    for advice in &report.health.advice {
        text += &format!("\nadvice     {advice}");
    }
    text
}

fn clock(health: &Health) -> String {
    let Some(clock) = &health.clock else {
        return "unknown".to_owned();
    };
    let mhz = |mhz: Option<u64>| mhz.map_or("?".to_owned(), |mhz| mhz.to_string());
    format!(
        "{} of {} MHz, governor {}",
        mhz(clock.now_mhz),
        mhz(clock.highest_mhz),
        clock.governor
    )
}

fn temperatures(health: &Health) -> String {
    let zones: Vec<String> = health
        .temperatures
        .iter()
        .map(|zone| format!("{} {:.0} C", zone.zone, zone.celsius))
        .collect();
    if zones.is_empty() {
        "no sensor".to_owned()
    } else {
        zones.join(", ")
    }
}

fn throttling(health: &Health) -> String {
    let Some(throttling) = health.throttling else {
        return "unknown (requires vcgencmd of a Raspberry Pi)".to_owned();
    };
    let list = |names: Vec<&str>| match names.as_slice() {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    };
    format!(
        "now {}, since boot {}",
        list(throttling.now()),
        list(throttling.since_start())
    )
}
