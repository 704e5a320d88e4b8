//! `edge-lmm doctor`: what this machine can do.

use std::fs;

use clap::Args;
use edge_lmm::report::bytes;
use edge_lmm_kernels::cpu::Isa;
use serde::Serialize;

use super::options::print_now;

/// Says what this machine can do: instruction sets, cores, memory, CUDA.
#[derive(Args)]
pub struct Cmd {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    architecture: &'static str,
    cores: usize,
    kernels: String,
    kernels_available: Vec<String>,
    memory_bytes: Option<usize>,
    available_bytes: Option<usize>,
    swap_bytes: Option<usize>,
    cuda: &'static str,
    devices: &'static [&'static str],
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            architecture: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernels: Isa::best().to_string(),
            kernels_available: Isa::available().iter().map(Isa::to_string).collect(),
            memory_bytes: meminfo(&memory, "MemTotal"),
            available_bytes: meminfo(&memory, "MemAvailable"),
            swap_bytes: meminfo(&memory, "SwapTotal"),
            cuda: "not in this binary",
            devices: &["cpu"],
        };
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            text(&report)
        };
        print_now(&format!("{text}\n"))
    }
}

/// A figure of /proc/meminfo in bytes.
fn meminfo(text: &str, name: &str) -> Option<usize> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: usize = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn text(report: &Report) -> String {
    let size = |n: Option<usize>| n.map_or_else(|| "unknown".to_owned(), bytes);
    format!(
        "edge-lmm {} on {}\n\
         cores      {}\n\
         kernels    {} (available: {})\n\
         memory     {}, {} available, swap {}\n\
         CUDA       {}\n\
         records    packed layout 1, the same for every CPU",
        report.version,
        report.architecture,
        report.cores,
        report.kernels,
        report.kernels_available.join(", "),
        size(report.memory_bytes),
        size(report.available_bytes),
        size(report.swap_bytes),
        report.cuda,
    )
}

#[cfg(test)]
mod tests {
    use super::meminfo;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(1 << 20));
        assert_eq!(meminfo(text, "MemTotal"), Some(16 << 20));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
