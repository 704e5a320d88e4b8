//! Device profiles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const SOURCES: [&str; 5] = [
    include_str!("../profiles/raspberry-pi-4.toml"),
    include_str!("../profiles/raspberry-pi-5.toml"),
    include_str!("../profiles/jetson-orin-nano.toml"),
    include_str!("../profiles/jetson-orin-nx.toml"),
    include_str!("../profiles/jetson-agx-orin.toml"),
];

/// Short names for a board of a series.
const ALIASES: [(&str, &str); 1] = [("jetson-orin", "jetson-orin-nano")];

/// The error returned when a device is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile has this name.
    #[error("unknown device {found:?}; expected {known}, or host for this machine")]
    Unknown {
        /// The requested name.
        found: String,
        /// The known names.
        known: String,
    },
    /// A profile is invalid.
    #[error("the profile {0}")]
    Unreadable(String),
}

/// A device: a board with one memory size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Name on the command line.
    pub name: String,
    /// Name of the board's profile, without the memory size.
    pub board: String,
    /// Display name.
    pub title: String,
    /// System on a chip.
    pub soc: String,
    /// Rust target.
    pub triple: String,
    /// Oldest supported version of the GNU C library.
    pub glibc: Option<String>,
    /// Name of the core in qemu.
    pub emulator_cpu: Option<String>,
    /// Shared libraries that a program may require.
    pub libraries: Vec<String>,
    /// Build settings of its program.
    pub build: Build,
    /// Layout of packed weights.
    pub record_layout: u32,
    /// Processor.
    pub cpu: Cpu,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Bytes reserved for the system.
    pub reserved_bytes: u64,
    /// Peak bandwidth in bytes per second; `None` if unknown.
    pub bandwidth: Option<f64>,
    /// Graphics processor.
    pub gpu: Option<Gpu>,
}

/// Build settings of the program for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Cargo features of `edge-lmm` for devices other than the CPU.
    pub features: Vec<String>,
    /// Environment variables for building these features.
    pub environment: BTreeMap<String, String>,
}

impl Build {
    /// Returns `true` if the program is built with a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Kind of core.
    pub core: String,
    /// Number of cores.
    pub cores: u32,
    /// Maximum sustained clock in MHz.
    pub clock_mhz: u32,
    /// Instruction set extensions, as Linux names them.
    pub features: Vec<String>,
    /// First-level data cache per core or cluster in KiB.
    pub l1d_kib: u32,
    /// Second-level cache in KiB.
    pub l2_kib: u32,
    /// Third-level cache in KiB, 0 without.
    pub l3_kib: u32,
    /// 8-bit multiply-accumulates per cycle and core.
    pub int8_macs_per_cycle: u32,
    /// f32 multiply-accumulates per cycle and core.
    pub f32_macs_per_cycle: u32,
}

/// A graphics processor that shares the memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// CUDA compute capability.
    pub architecture: String,
    /// CUDA cores.
    pub cores: u32,
    /// Maximum clock in MHz.
    pub clock_mhz: u32,
}

impl Device {
    /// Returns the memory that programs can use.
    pub fn usable_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.reserved_bytes)
    }

    /// Returns [`Self::usable_bytes`] in percent of the memory, rounded down.
    pub fn usable_percent(&self) -> u64 {
        (u128::from(self.usable_bytes()) * 100 / u128::from(self.memory_bytes.max(1))) as u64
    }

    /// Returns the peak 8-bit multiply-accumulates per second of the processor; `None` if unknown.
    pub fn int8_macs(&self) -> Option<f64> {
        let per_second = f64::from(self.cpu.cores)
            * f64::from(self.cpu.clock_mhz)
            * 1e6
            * f64::from(self.cpu.int8_macs_per_cycle);
        (per_second > 0.0).then_some(per_second)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Board {
    name: String,
    title: String,
    soc: String,
    triple: String,
    glibc: Option<String>,
    emulator_cpu: Option<String>,
    libraries: Vec<String>,
    #[serde(default)]
    build: Build,
    record_layout: u32,
    cpu: Cpu,
    memory: Memory,
    gpu: Option<Gpu>,
    variant: Vec<Variant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    bandwidth_gb_s: f64,
    reserved_mib: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    memory_gib: u64,
    cores: Option<u32>,
    clock_mhz: Option<u32>,
    bandwidth_gb_s: Option<f64>,
    gpu: Option<Gpu>,
}

impl Board {
    fn device(&self, variant: &Variant) -> Device {
        let bandwidth = variant.bandwidth_gb_s.unwrap_or(self.memory.bandwidth_gb_s);
        Device {
            name: format!("{}-{}gb", self.name, variant.memory_gib),
            board: self.name.clone(),
            title: format!("{}, {} GB", self.title, variant.memory_gib),
            soc: self.soc.clone(),
            triple: self.triple.clone(),
            glibc: self.glibc.clone(),
            emulator_cpu: self.emulator_cpu.clone(),
            libraries: self.libraries.clone(),
            build: self.build.clone(),
            record_layout: self.record_layout,
            cpu: Cpu {
                cores: variant.cores.unwrap_or(self.cpu.cores),
                clock_mhz: variant.clock_mhz.unwrap_or(self.cpu.clock_mhz),
                ..self.cpu.clone()
            },
            memory_bytes: variant.memory_gib * GIB,
            reserved_bytes: self.memory.reserved_mib * MIB,
            bandwidth: Some(bandwidth * 1e9),
            gpu: variant.gpu.clone().or_else(|| self.gpu.clone()),
        }
    }
}

/// Returns all devices; the smallest variant of a board comes first.
///
/// # Errors
/// If a profile is invalid.
pub fn devices() -> Result<Vec<Device>, ProfileError> {
    let mut devices = Vec::new();
    for source in SOURCES {
        let board: Board =
            toml::from_str(source).map_err(|error| ProfileError::Unreadable(error.to_string()))?;
        let mut variants: Vec<Device> = board.variant.iter().map(|v| board.device(v)).collect();
        variants.sort_by_key(|device| device.memory_bytes);
        devices.append(&mut variants);
    }
    Ok(devices)
}

/// Returns the device with this name: `raspberry-pi-5-8gb`, `raspberry-pi-5` for the smallest
/// variant, or `host` for this machine.
///
/// # Errors
/// If there is none.
pub fn device(name: &str) -> Result<Device, ProfileError> {
    if name == "host" {
        return Ok(host());
    }
    let devices = devices()?;
    let name = ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, board)| board);
    let found = devices
        .iter()
        .find(|device| device.name == name || device.board == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        ProfileError::Unknown {
            found: name.to_owned(),
            known: names.join(", "),
        }
    })
}

/// Describes this machine as far as the system reports it; bandwidth and arithmetic peak are
/// unknown.
fn host() -> Device {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_bytes = meminfo(&memory, "MemTotal").unwrap_or(0);
    let available = meminfo(&memory, "MemAvailable").unwrap_or(memory_bytes);
    Device {
        name: "host".to_owned(),
        board: "host".to_owned(),
        title: "this machine".to_owned(),
        soc: "unknown".to_owned(),
        triple: format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        glibc: None,
        emulator_cpu: None,
        libraries: ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"]
            .map(str::to_owned)
            .to_vec(),
        build: Build::default(),
        record_layout: 1,
        cpu: Cpu {
            core: std::env::consts::ARCH.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            clock_mhz: 0,
            features: Vec::new(),
            l1d_kib: 0,
            l2_kib: 0,
            l3_kib: 0,
            int8_macs_per_cycle: 0,
            f32_macs_per_cycle: 0,
        },
        memory_bytes,
        reserved_bytes: memory_bytes.saturating_sub(available),
        bandwidth: None,
        gpu: None,
    }
}

/// Parses a figure of `/proc/meminfo` in bytes.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_complete_and_plausible() {
        let devices = devices().expect("the profiles can be read");
        assert!(devices.len() >= 10);
        for device in &devices {
            assert!(
                device.usable_bytes() > device.memory_bytes / 2,
                "{device:?}"
            );
            let bandwidth = device.bandwidth.expect("a bandwidth");
            assert!((1e9..1e12).contains(&bandwidth), "{device:?}");
            assert!(
                device.int8_macs().is_some_and(|macs| macs > 1e10),
                "{device:?}"
            );
            assert_eq!(device.gpu.is_some(), device.board.starts_with("jetson"));
            assert_eq!(device.gpu.is_some(), device.build.has("cuda"));
        }
    }

    #[test]
    fn a_plain_name_is_the_smallest_variant() {
        assert_eq!(device("raspberry-pi-5").unwrap().name, "raspberry-pi-5-4gb");
        assert_eq!(device("jetson-orin").unwrap().name, "jetson-orin-nano-8gb");
        let agx = device("jetson-agx-orin-64gb").unwrap();
        assert_eq!((agx.cpu.cores, agx.gpu.unwrap().cores), (12, 2048));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = device("raspberry-pi-9").unwrap_err().to_string();
        assert!(message.contains("raspberry-pi-5-16gb"), "{message}");
    }

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(1 << 20));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
