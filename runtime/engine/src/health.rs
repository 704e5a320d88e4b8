//! State of the machine: available memory, swap, temperature, throttling and clock, with advice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edge_lmm_targets::profile::meminfo;
use serde::Serialize;

/// Boards with a passive cooler are close to throttling above this temperature (a Raspberry Pi
/// throttles at 80).
const HOT_CELSIUS: f64 = 75.0;

/// Locations of the memory figures of control groups.
struct GroupFiles {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Prefixes of the lines of `memory.stat` that count file pages.
    pages: [&'static str; 2],
}

const GROUPS_2: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    pages: ["inactive_file ", "active_file "],
};

/// Version 1, as in JetPack 5.
const GROUPS_1: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    pages: ["total_inactive_file ", "total_active_file "],
};

/// Groups of version 1 without a limit report nearly 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// Access to the system's state files. Tests use other roots than `/`.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

/// Memory figures in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Total memory.
    pub total: u64,
    /// Memory that programs can allocate without swapping (`MemAvailable`). If the GPU shares the
    /// memory, this figure applies to it too; CUDA's own figure excludes memory that the system
    /// would reclaim.
    pub available: u64,
    /// Memory left by the limit of this process's control group, if there is one.
    pub group: Option<u64>,
    /// Memory left by the limit of this process's address space (`ulimit -v`), if there is one.
    pub process: Option<u64>,
    /// Total swap.
    pub swap: u64,
    /// Part of the swap in compressed memory (zram).
    pub zram: u64,
}

impl Memory {
    /// Returns the memory that this process can allocate.
    pub fn usable(&self) -> u64 {
        [self.group, self.process]
            .into_iter()
            .flatten()
            .fold(self.available, u64::min)
    }
}

/// A temperature sensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Temperature {
    /// Name of the thermal zone.
    pub zone: String,
    /// Degrees Celsius.
    pub celsius: f64,
}

/// Clock of the first core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// Frequency governor.
    pub governor: String,
    /// Current frequency in MHz.
    pub now_mhz: Option<u64>,
    /// Maximum frequency in MHz.
    pub highest_mhz: Option<u64>,
}

/// Power and temperature flags of a Raspberry Pi's firmware (`vcgencmd get_throttled`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// The flags as reported.
    pub bits: u32,
}

impl Throttling {
    const NOW: [(u32, &'static str); 4] = [
        (0, "under-voltage"),
        (1, "clock capped"),
        (2, "throttled"),
        (3, "soft temperature limit"),
    ];

    /// Parses `throttled=0x50005`.
    fn parse(text: &str) -> Option<Self> {
        let bits = text.trim().strip_prefix("throttled=0x")?;
        let bits = u32::from_str_radix(bits, 16).ok()?;
        Some(Self { bits })
    }

    /// Returns the names of the current conditions.
    pub fn now(self) -> Vec<&'static str> {
        self.names(0)
    }

    /// Returns the names of the conditions since boot.
    pub fn since_start(self) -> Vec<&'static str> {
        self.names(16)
    }

    fn names(self, shift: u32) -> Vec<&'static str> {
        Self::NOW
            .iter()
            .filter(|(bit, _)| self.bits >> (bit + shift) & 1 == 1)
            .map(|(_, name)| *name)
            .collect()
    }
}

/// State of the machine, as far as the system reports it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Board name from the device tree.
    pub board: Option<String>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Temperature sensors.
    pub temperatures: Vec<Temperature>,
    /// Processor clock.
    pub clock: Option<Clock>,
    /// Power and temperature flags, on a Raspberry Pi with `vcgencmd`.
    pub throttling: Option<Throttling>,
    /// Recommended changes.
    pub advice: Vec<String>,
}

impl System {
    /// Creates an instance with another root.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads a file below the root as text, without the whitespace and zeros around it.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_matches(['\0', '\n', ' ']).to_owned())
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// Reads the memory figures; `None` if the system does not report them.
    pub fn memory(&self) -> Option<Memory> {
        let text = self.read("proc/meminfo")?;
        Some(Memory {
            total: meminfo(&text, "MemTotal")?,
            available: meminfo(&text, "MemAvailable")?,
            group: self.group_memory(),
            process: self.process_memory(),
            swap: meminfo(&text, "SwapTotal").unwrap_or(0),
            zram: self.zram(),
        })
    }

    /// Returns the memory left by the limit of this process's address space.
    fn process_memory(&self) -> Option<u64> {
        let limits = self.read("proc/self/limits")?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max address space"))?;
        let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
        let used = meminfo(&self.read("proc/self/status")?, "VmSize")?;
        Some(limit.saturating_sub(used))
    }

    /// Returns the memory left by the tightest of this process's control groups.
    fn group_memory(&self) -> Option<u64> {
        let groups = self.read("proc/self/cgroup")?;
        groups
            .lines()
            .filter_map(|line| {
                // Format: hierarchy:controllers:/path, without controllers in version 2.
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                let files = match controllers {
                    "" => &GROUPS_2,
                    _ if controllers.split(',').any(|name| name == "memory") => &GROUPS_1,
                    _ => return None,
                };
                self.left_by(files, Path::new(path.trim_start_matches('/')))
            })
            .min()
    }

    /// Returns the memory left by the tightest of a group and its ancestors. Pages of files that a
    /// group has read count as used but can be reclaimed.
    fn left_by(&self, files: &GroupFiles, path: &Path) -> Option<u64> {
        let left = |group: &Path| {
            let group = Path::new(files.mount).join(group);
            let limit = self.number(group.join(files.limit))?;
            if limit >= NO_LIMIT {
                return None;
            }
            let used = self.number(group.join(files.used))?;
            let statistics = self.read(group.join("memory.stat")).unwrap_or_default();
            let pages: u64 = files
                .pages
                .iter()
                .filter_map(|name| {
                    let line = statistics.lines().find_map(|l| l.strip_prefix(name))?;
                    line.trim().parse::<u64>().ok()
                })
                .sum();
            Some(limit.saturating_sub(used.saturating_sub(pages)))
        };
        path.ancestors().filter_map(left).min()
    }

    /// Returns the bytes of swap in compressed memory.
    fn zram(&self) -> u64 {
        let swaps = self.read("proc/swaps").unwrap_or_default();
        let sizes = swaps.lines().filter(|line| line.starts_with("/dev/zram"));
        let kib: u64 = sizes
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum();
        kib * 1024
    }

    /// Reads the temperature sensors, sorted by name.
    pub fn temperatures(&self) -> Vec<Temperature> {
        let Ok(zones) = fs::read_dir(self.root.join("sys/class/thermal")) else {
            return Vec::new();
        };
        let mut found: Vec<Temperature> = zones
            .flatten()
            .filter_map(|zone| {
                let millis: i64 = self.read(zone.path().join("temp"))?.parse().ok()?;
                Some(Temperature {
                    zone: self.read(zone.path().join("type"))?,
                    celsius: millis as f64 / 1000.0,
                })
            })
            // Disabled zones report implausible values.
            .filter(|zone| (-50.0..200.0).contains(&zone.celsius))
            .collect();
        found.sort_by(|a, b| a.zone.cmp(&b.zone));
        found
    }

    /// Reads the clock of the first core; `None` if the system does not report it.
    pub fn clock(&self) -> Option<Clock> {
        let folder = Path::new("sys/devices/system/cpu/cpu0/cpufreq");
        let mhz = |name: &str| self.number(folder.join(name)).map(|khz| khz / 1000);
        Some(Clock {
            governor: self.read(folder.join("scaling_governor"))?,
            now_mhz: mhz("scaling_cur_freq"),
            highest_mhz: mhz("scaling_max_freq"),
        })
    }

    /// Returns the name of the board from the device tree, if there is one.
    pub fn board(&self) -> Option<String> {
        self.read("proc/device-tree/model")
    }

    /// Queries the power and temperature flags of a Raspberry Pi; `None` on other machines.
    pub fn throttling(&self) -> Option<Throttling> {
        let real = self.root == Path::new("/");
        real.then(vcgencmd).flatten()
    }

    /// Reads the complete state.
    pub fn health(&self) -> Health {
        let mut health = Health {
            board: self.board(),
            memory: self.memory(),
            temperatures: self.temperatures(),
            clock: self.clock(),
            throttling: self.throttling(),
            advice: Vec::new(),
        };
        health.advice = advice(&health);
        health
    }
}

/// Queries the firmware if `vcgencmd` is installed.
fn vcgencmd() -> Option<Throttling> {
    let output = Command::new("vcgencmd")
        .arg("get_throttled")
        .output()
        .ok()?;
    Throttling::parse(&String::from_utf8_lossy(&output.stdout))
}

fn advice(health: &Health) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(throttling) = health.throttling {
        if throttling.bits & 0x1_0001 != 0 {
            advice.push(
                "the power supply is too weak or its cable too long (under-voltage): use the \
                 recommended supply"
                    .to_owned(),
            );
        }
        if throttling.bits & 0xE_000E != 0 {
            advice.push(
                "the processor has been throttled since boot: cool it, or expect lower \
                 speed"
                    .to_owned(),
            );
        }
    }
    let hottest = health
        .temperatures
        .iter()
        .max_by(|a, b| a.celsius.total_cmp(&b.celsius));
    if let Some(zone) = hottest.filter(|zone| zone.celsius >= HOT_CELSIUS) {
        advice.push(format!(
            "{} is at {:.0} degrees Celsius: cool it, it throttles near 80",
            zone.zone, zone.celsius
        ));
    }
    if let Some(clock) = &health.clock
        && !["performance", "schedutil"].contains(&clock.governor.as_str())
    {
        advice.push(format!(
            "the frequency governor is {}: `echo performance | sudo tee \
             /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor` sets full speed",
            clock.governor
        ));
    }
    if let Some(memory) = health.memory
        && memory.swap > memory.zram
        && memory.total < 16 << 30
    {
        advice.push(
            "swap is on a disk or card: if weights are swapped out, an answer takes minutes; \
             prefer zram, or lock the record in memory"
                .to_owned(),
        );
    }
    advice
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Creates a machine that has only these files of `/proc`, `/sys` and `/etc`.
    pub(crate) fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let system = System::at(root.path());
        (root, system)
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 4194304 kB\nMemFree: 1000 kB\nMemAvailable: 3145728 kB\nSwapTotal: 204800 kB\n",
    );

    #[test]
    fn memory_of_a_board() {
        let (_root, system) = system(&[
            MEMINFO,
            (
                "proc/swaps",
                "Filename Type Size Used Priority\n/dev/zram0 partition 102400 0 100\n",
            ),
        ]);
        let memory = system.memory().expect("memory");
        assert_eq!((memory.total, memory.available), (4 << 30, 3 << 30));
        assert_eq!((memory.swap, memory.zram), (200 << 20, 100 << 20));
        assert_eq!(memory.usable(), 3 << 30);
    }

    #[test]
    fn the_tightest_group_limits() {
        let (_root, system) = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/system.slice/edge.service\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "0\n"),
            (
                "sys/fs/cgroup/system.slice/edge.service/memory.max",
                "1073741824\n",
            ),
            (
                "sys/fs/cgroup/system.slice/edge.service/memory.current",
                "536870912\n",
            ),
            (
                "sys/fs/cgroup/system.slice/edge.service/memory.stat",
                "anon 1\ninactive_file 268435456\nactive_file 0\n",
            ),
        ]);
        // 1 GiB limit, 512 MiB used, 256 MiB of them file pages.
        assert_eq!(system.memory().unwrap().usable(), 768 << 20);
    }

    #[test]
    fn a_group_without_limit_does_not() {
        let (_root, system) = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ]);
        assert_eq!(system.memory().unwrap().usable(), 3 << 30);
    }

    #[test]
    fn a_limit_on_the_address_space_limits_too() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\n\
                      Max address space         1073741824           unlimited            bytes\n";
        let status = ("proc/self/status", "Name: x\nVmSize:\t  524288 kB\n");
        let (_root, system) = system(&[MEMINFO, ("proc/self/limits", limits), status]);
        assert_eq!(system.memory().unwrap().usable(), 512 << 20);
        let unlimited = "Max address space         unlimited            unlimited     bytes\n";
        let (_root, system) = super::tests::system(&[MEMINFO, ("proc/self/limits", unlimited)]);
        assert_eq!(system.memory().unwrap().process, None);
    }

    #[test]
    fn groups_of_version_1_limit_too() {
        let (_root, system) = system(&[
            MEMINFO,
            ("proc/self/cgroup", "9:cpu:/a\n4:cpuset,memory:/a/b\n0::/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "99\n"),
            (
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "1073741824\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes",
                "536870912\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.stat",
                "inactive_file 1\ntotal_inactive_file 268435456\n",
            ),
        ]);
        assert_eq!(system.memory().unwrap().group, Some(768 << 20));
    }

    #[test]
    fn a_hot_board_on_a_slow_governor_gets_advice() {
        let cpu = "sys/devices/system/cpu/cpu0/cpufreq/";
        let governor = format!("{cpu}scaling_governor");
        let now = format!("{cpu}scaling_cur_freq");
        let (_root, system) = system(&[
            ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
            ("sys/class/thermal/thermal_zone0/temp", "81500\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            (&governor, "powersave\n"),
            (&now, "1500000\n"),
        ]);
        let health = system.health();
        assert_eq!(
            health.board.as_deref(),
            Some("Raspberry Pi 5 Model B Rev 1.0")
        );
        assert_eq!(health.clock.as_ref().unwrap().now_mhz, Some(1500));
        assert_eq!(health.temperatures[0].celsius, 81.5);
        assert_eq!(health.advice.len(), 2, "{:?}", health.advice);
    }

    #[test]
    fn an_empty_system_tells_nothing() {
        let (_root, system) = system(&[]);
        let health = system.health();
        assert_eq!(
            (health.memory, health.clock, health.advice.len()),
            (None, None, 0)
        );
    }

    #[test]
    fn the_firmwares_bits_have_names() {
        let bits = Throttling::parse("throttled=0x50005\n").expect("bits");
        assert_eq!(bits.now(), ["under-voltage", "throttled"]);
        assert_eq!(bits.since_start(), ["under-voltage", "throttled"]);
        assert_eq!(Throttling::parse("error"), None);
    }
}
