//! The state of the machine: memory that is really available, swap, temperature, throttling and
//! clock, and what to change about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edge_lmm_targets::profile::meminfo;
use serde::Serialize;

/// Above this, boards with a passive cooler are about to slow down (a Raspberry Pi does at 80).
const HOT_CELSIUS: f64 = 75.0;

/// Where control groups show their memory.
struct GroupFiles {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat` that count pages of files.
    pages: [&'static str; 2],
}

const GROUPS_2: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    pages: ["inactive_file ", "active_file "],
};

/// Version 1, as JetPack 5 has it.
const GROUPS_1: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    pages: ["total_inactive_file ", "total_active_file "],
};

/// A group of version 1 without a limit has one of nearly 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// Where the system shows its state. Other roots than `/` serve tests.
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

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs can still have without anything being swapped out (`MemAvailable`). On a
    /// machine whose graphics processor shares the memory this is what it can have, too; CUDA's
    /// own figure leaves out what the system would give back.
    pub available: u64,
    /// What the control group of this process leaves, if it has a limit.
    pub group: Option<u64>,
    /// What the limit on this process's address space (`ulimit -v`) leaves, if there is one.
    pub process: Option<u64>,
    /// Swap, all of it.
    pub swap: u64,
    /// Of it, compressed memory (zram).
    pub zram: u64,
}

impl Memory {
    /// What this process can have.
    pub fn usable(&self) -> u64 {
        [self.group, self.process]
            .into_iter()
            .flatten()
            .fold(self.available, u64::min)
    }
}

/// A sensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Temperature {
    /// Its name.
    pub zone: String,
    /// Degrees Celsius.
    pub celsius: f64,
}

/// The first core's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// What chooses it.
    pub governor: String,
    /// MHz now.
    pub now_mhz: Option<u64>,
    /// The highest, in MHz.
    pub highest_mhz: Option<u64>,
}

/// What the firmware of a Raspberry Pi says about its power and heat (`vcgencmd get_throttled`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// The bits.
    pub bits: u32,
}

impl Throttling {
    const NOW: [(u32, &'static str); 4] = [
        (0, "under-voltage"),
        (1, "clock capped"),
        (2, "throttled"),
        (3, "soft temperature limit"),
    ];

    /// `throttled=0x50005`
    fn parse(text: &str) -> Option<Self> {
        let bits = text.trim().strip_prefix("throttled=0x")?;
        let bits = u32::from_str_radix(bits, 16).ok()?;
        Some(Self { bits })
    }

    /// What is the case now.
    pub fn now(self) -> Vec<&'static str> {
        self.names(0)
    }

    /// What has been the case since the start.
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

/// The state of the machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// The board, from the device tree.
    pub board: Option<String>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Sensors.
    pub temperatures: Vec<Temperature>,
    /// Clock.
    pub clock: Option<Clock>,
    /// Power and heat, on a Raspberry Pi with `vcgencmd`.
    pub throttling: Option<Throttling>,
    /// What to change.
    pub advice: Vec<String>,
}

impl System {
    /// With another root.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_matches(['\0', '\n', ' ']).to_owned())
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// Memory; `None` where the system does not tell.
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

    /// What the limit on this process's address space leaves.
    fn process_memory(&self) -> Option<u64> {
        let limits = self.read("proc/self/limits")?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max address space"))?;
        let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
        let used = meminfo(&self.read("proc/self/status")?, "VmSize")?;
        Some(limit.saturating_sub(used))
    }

    /// What the tightest of this process's control groups leaves.
    fn group_memory(&self) -> Option<u64> {
        let groups = self.read("proc/self/cgroup")?;
        groups
            .lines()
            .filter_map(|line| {
                // hierarchy:controllers:/path, without controllers in version 2
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

    /// What the tightest of a group and those above it leaves. Pages of files that a group has read
    /// count as used there, but are given back when needed.
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

    /// Bytes of swap that are compressed memory.
    fn zram(&self) -> u64 {
        let swaps = self.read("proc/swaps").unwrap_or_default();
        let sizes = swaps.lines().filter(|line| line.starts_with("/dev/zram"));
        let kib: u64 = sizes
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum();
        kib * 1024
    }

    fn temperatures(&self) -> Vec<Temperature> {
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
            // Zones that are switched off show absurd values.
            .filter(|zone| (-50.0..200.0).contains(&zone.celsius))
            .collect();
        found.sort_by(|a, b| a.zone.cmp(&b.zone));
        found
    }

    fn clock(&self) -> Option<Clock> {
        let folder = Path::new("sys/devices/system/cpu/cpu0/cpufreq");
        let mhz = |name: &str| self.number(folder.join(name)).map(|khz| khz / 1000);
        Some(Clock {
            governor: self.read(folder.join("scaling_governor"))?,
            now_mhz: mhz("scaling_cur_freq"),
            highest_mhz: mhz("scaling_max_freq"),
        })
    }

    /// Everything.
    pub fn health(&self) -> Health {
        let throttling = self.root == Path::new("/");
        let throttling = throttling.then(vcgencmd).flatten();
        let mut health = Health {
            board: self.read("proc/device-tree/model"),
            memory: self.memory(),
            temperatures: self.temperatures(),
            clock: self.clock(),
            throttling,
            advice: Vec::new(),
        };
        health.advice = advice(&health);
        health
    }
}

/// Asks the firmware, where the program for it is installed.
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
                 board's own supply"
                    .to_owned(),
            );
        }
        if throttling.bits & 0xE_000E != 0 {
            advice.push(
                "the processor has been slowed down since the start: cool it, or expect the \
                 speed to sink"
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
            "{} is at {:.0} degrees Celsius: cool it, it slows down near 80",
            zone.zone, zone.celsius
        ));
    }
    if let Some(clock) = &health.clock
        && !["performance", "schedutil"].contains(&clock.governor.as_str())
    {
        advice.push(format!(
            "the clock's governor is {}: `echo performance | sudo tee \
             /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor` gives full speed at once",
            clock.governor
        ));
    }
    if let Some(memory) = health.memory
        && memory.swap > memory.zram
        && memory.total < 16 << 30
    {
        advice.push(
            "there is swap on a disk or card: if weights are swapped, an answer takes minutes; \
             prefer zram, or --mlock"
                .to_owned(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
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
        // 1 GiB, 512 MiB of it used, of which 256 MiB are a file's pages.
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
