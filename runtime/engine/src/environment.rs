//! Environment of a measurement: program, machine, its state before and after, and the model.

use edge_lmm_kernels::pool;
use edge_lmm_record::Record;
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::health::System;

/// Conditions of a measurement. Fields that the machine does not report are `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Name of the program.
    pub program: String,
    /// Version of the program.
    pub version: String,
    /// `release`, or `debug` if the program was built with debug assertions.
    pub build: String,
    /// Devices that the program was built for.
    pub features: Vec<String>,
    /// Name of the board from the device tree, or of the processor.
    pub machine: Option<String>,
    /// Architecture of the program, such as `aarch64`.
    pub architecture: String,
    /// Instruction set of the CPU kernels.
    pub kernels: String,
    /// Threads of the CPU kernels.
    pub threads: usize,
    /// Device of the model, as `--device` takes it.
    pub device: String,
    /// Name and properties of the device.
    pub device_name: String,
    /// Name and version of the operating system.
    pub os: Option<String>,
    /// Version of the operating system's kernel.
    pub os_kernel: Option<String>,
    /// Total memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Frequency governor of the first core.
    pub governor: Option<String>,
    /// Maximum frequency of the first core in MHz.
    pub highest_mhz: Option<u64>,
    /// The model.
    pub record: Option<RecordName>,
    /// State before the measurement.
    pub before: MachineState,
    /// State after the measurement; `None` until it has ended.
    pub after: Option<MachineState>,
}

/// Record of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecordName {
    /// Path of the file, as it was opened.
    pub path: String,
    /// Hash that identifies the model ([`Record::identity`]), in hexadecimal.
    pub hash: String,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// State of the machine that changes during a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineState {
    /// Temperature of the hottest zone in degrees Celsius.
    pub celsius: Option<f64>,
    /// Name of the hottest zone.
    pub zone: Option<String>,
    /// Frequency of the first core in MHz.
    pub mhz: Option<u64>,
    /// Current power and temperature conditions of a Raspberry Pi, such as `throttled`.
    pub throttling: Option<Vec<String>>,
    /// Memory in bytes that programs can allocate without swapping.
    pub available_bytes: Option<u64>,
}

impl MachineState {
    /// Reads the state.
    pub fn read(system: &System) -> Self {
        let temperatures = system.temperatures().into_iter();
        let hottest = temperatures.max_by(|a, b| a.celsius.total_cmp(&b.celsius));
        let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Self {
            celsius: hottest.as_ref().map(|zone| zone.celsius),
            zone: hottest.map(|zone| zone.zone),
            mhz: system.clock().and_then(|clock| clock.now_mhz),
            throttling: system.throttling().map(|flags| names(flags.now())),
            available_bytes: system.memory().map(|memory| memory.available),
        }
    }
}

impl Environment {
    /// Describes this machine before a measurement on a device, which must have been
    /// [checked](Device::check).
    pub fn before(device: Device, record: Option<&Record>) -> Self {
        Self::on(&System::default(), device, record)
    }

    /// Describes a machine whose state files are those of `system`.
    fn on(system: &System, device: Device, record: Option<&Record>) -> Self {
        let pool = pool::global();
        let clock = system.clock();
        Self {
            program: "edge-lmm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: match cfg!(debug_assertions) {
                true => "debug".to_owned(),
                false => "release".to_owned(),
            },
            features: Device::BUILT.iter().map(|&name| name.to_owned()).collect(),
            machine: system.board().or_else(|| processor(system)),
            architecture: std::env::consts::ARCH.to_owned(),
            kernels: pool.kernels().isa().to_string(),
            threads: pool.threads(),
            device: device.to_string(),
            device_name: device.fingerprint(),
            os: os(system),
            os_kernel: system.read("proc/sys/kernel/osrelease"),
            memory_bytes: system.memory().map(|memory| memory.total),
            governor: clock.as_ref().map(|clock| clock.governor.clone()),
            highest_mhz: clock.and_then(|clock| clock.highest_mhz),
            record: record.map(RecordName::of),
            before: MachineState::read(system),
            after: None,
        }
    }

    /// Adds the state of this machine after the measurement.
    pub fn finish(&mut self) {
        self.after = Some(MachineState::read(&System::default()));
    }
}

impl RecordName {
    fn of(record: &Record) -> Self {
        Self {
            path: record.path().display().to_string(),
            hash: format!("{:032x}", record.identity()),
            bytes: record.len() as u64,
        }
    }
}

/// Returns the name of the processor, if the system reports it.
fn processor(system: &System) -> Option<String> {
    let text = system.read("proc/cpuinfo")?;
    let value = |name: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = fields.find(|(field, _)| field.trim() == name)?;
        Some(value.trim().to_owned())
    };
    value("model name").or_else(|| value("Model"))
}

/// Returns the name and version of the operating system.
fn os(system: &System) -> Option<String> {
    let text = system.read("etc/os-release")?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::system as machine;

    #[test]
    fn a_board_is_described() {
        let cpu = "sys/devices/system/cpu/cpu0/cpufreq/";
        let files = |name: &str| format!("{cpu}{name}");
        let (_root, system) = machine(&[
            ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
            ("proc/sys/kernel/osrelease", "6.6.31-v8\n"),
            (
                "etc/os-release",
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
            ),
            ("sys/class/thermal/thermal_zone0/temp", "61500\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone1/temp", "40000\n"),
            ("sys/class/thermal/thermal_zone1/type", "rp1\n"),
            (&files("scaling_governor"), "ondemand\n"),
            (&files("scaling_cur_freq"), "1500000\n"),
            (&files("scaling_max_freq"), "2400000\n"),
        ]);
        let environment = Environment::on(&system, Device::Cpu, None);
        assert_eq!(
            environment.machine.as_deref(),
            Some("Raspberry Pi 5 Model B Rev 1.0")
        );
        assert_eq!(environment.os.as_deref(), Some("Debian GNU/Linux 12"));
        assert_eq!(environment.os_kernel.as_deref(), Some("6.6.31-v8"));
        assert_eq!(environment.governor.as_deref(), Some("ondemand"));
        assert_eq!(environment.highest_mhz, Some(2400));
        let MachineState { celsius, mhz, .. } = environment.before;
        assert_eq!((celsius, mhz), (Some(61.5), Some(1500)));
    }

    #[test]
    fn a_desk_is_named_by_its_processor() {
        let (_root, system) = machine(&[(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Fast CPU 9000\n",
        )]);
        assert_eq!(processor(&system).as_deref(), Some("Fast CPU 9000"));
    }

    #[test]
    fn unknown_things_are_left_out() {
        let (_root, system) = machine(&[]);
        let environment = Environment::on(&system, Device::Cpu, None);
        assert_eq!(environment.machine, None);
        assert_eq!(environment.before.celsius, None);
        assert_eq!(environment.before.throttling, None);
        assert_eq!(environment.after, None);
    }

    #[test]
    fn json_round_trip() {
        let mut environment = Environment::before(Device::Cpu, None);
        environment.finish();
        let json = serde_json::to_string(&environment).unwrap();
        let read: Environment = serde_json::from_str(&json).unwrap();
        assert_eq!(read, environment);
        assert!(read.after.is_some() && read.threads > 0);
    }
}
