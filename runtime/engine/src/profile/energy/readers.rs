//! Sensors of boards and workstations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{EnergyReader, Reading};

/// Returns the first sensor that this machine has and this process may read: the power rails of a
/// Jetson, the energy counters of an x86 processor, or the power regulator of a Raspberry Pi 5.
/// `root` is `/` outside of tests.
pub fn find(root: &Path) -> Option<Box<dyn EnergyReader>> {
    if let Some(reader) = Ina3221::find(root) {
        return Some(Box::new(reader));
    }
    if let Some(reader) = Rapl::find(root) {
        return Some(Box::new(reader));
    }
    let real = root == Path::new("/");
    let pmic = real.then(PmicAdc::find).flatten()?;
    Some(Box::new(pmic))
}

fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Returns the entries of a folder, sorted by name; none if it does not exist.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The INA3221 power monitors of a Jetson, through `hwmon`.
pub struct Ina3221 {
    rails: Vec<Rail>,
}

struct Rail {
    label: String,
    /// File with millivolts.
    voltage: PathBuf,
    /// File with milliamperes.
    current: PathBuf,
}

/// Rails that carry all the power of a board: Orin Nano and NX; Nano and TX.
const WHOLE_BOARD: [&str; 3] = ["VDD_IN", "POM_5V_IN", "5V_IN"];
/// Rails behind other rails, whose power is measured there, too.
const BEHIND_OTHERS: [&str; 1] = ["VDDQ_VDD2_1V8AO"];

impl Ina3221 {
    /// Returns the rails of the board below `root`, if it has some.
    pub fn find(root: &Path) -> Option<Self> {
        let mut rails = Vec::new();
        for monitor in entries(&root.join("sys/class/hwmon")) {
            if text(&monitor.join("name")).as_deref() != Some("ina3221") {
                continue;
            }
            rails.extend((1..=3).filter_map(|channel| Rail::find(&monitor, channel)));
        }
        let whole = |rail: &Rail| WHOLE_BOARD.contains(&rail.label.as_str());
        if rails.iter().any(whole) {
            rails.retain(whole);
        }
        rails.retain(|rail| !BEHIND_OTHERS.contains(&rail.label.as_str()));
        (!rails.is_empty()).then_some(Self { rails })
    }
}

impl Rail {
    fn find(monitor: &Path, channel: usize) -> Option<Self> {
        let rail = Self {
            label: text(&monitor.join(format!("in{channel}_label")))?,
            voltage: monitor.join(format!("in{channel}_input")),
            current: monitor.join(format!("curr{channel}_input")),
        };
        rail.watts().map(|_| rail)
    }

    fn watts(&self) -> Option<f64> {
        Some(number(&self.voltage)? * number(&self.current)? / 1e6)
    }
}

impl EnergyReader for Ina3221 {
    fn source(&self) -> String {
        let labels: Vec<&str> = self.rails.iter().map(|rail| rail.label.as_str()).collect();
        format!("INA3221 rails {}", labels.join(" + "))
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn read(&mut self) -> Option<Reading> {
        let watts = self.rails.iter().map(Rail::watts);
        watts.sum::<Option<f64>>().map(Reading::Watts)
    }
}

/// Energy counters of x86 processors (RAPL), through `powercap`: all packages, and memory where it
/// has a counter.
pub struct Rapl {
    zones: Vec<Zone>,
}

struct Zone {
    name: String,
    /// File with microjoules.
    energy: PathBuf,
    /// The counter restarts from 0 after this value.
    range: f64,
    last: f64,
    /// Microjoules since the first reading.
    sum: f64,
}

impl Rapl {
    /// Returns the counters below `root`, if there are some that this process may read.
    pub fn find(root: &Path) -> Option<Self> {
        let zones = entries(&root.join("sys/class/powercap")).into_iter();
        let zones: Vec<Zone> = zones.filter_map(|zone| Zone::find(&zone)).collect();
        (!zones.is_empty()).then_some(Self { zones })
    }
}

impl Zone {
    fn find(zone: &Path) -> Option<Self> {
        let name = text(&zone.join("name"))?;
        if !name.starts_with("package") && name != "dram" {
            return None;
        }
        let energy = zone.join("energy_uj");
        Some(Self {
            name,
            last: number(&energy)?,
            range: number(&zone.join("max_energy_range_uj"))?,
            energy,
            sum: 0.0,
        })
    }

    fn joules(&mut self) -> Option<f64> {
        let now = number(&self.energy)?;
        self.sum += match now >= self.last {
            true => now - self.last,
            false => now + self.range - self.last,
        };
        self.last = now;
        Some(self.sum / 1e6)
    }
}

impl EnergyReader for Rapl {
    fn source(&self) -> String {
        let names: Vec<&str> = self.zones.iter().map(|zone| zone.name.as_str()).collect();
        format!("RAPL {}", names.join(" + "))
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn read(&mut self) -> Option<Reading> {
        let joules = self.zones.iter_mut().map(Zone::joules);
        joules.sum::<Option<f64>>().map(Reading::Joules)
    }
}

/// The power regulator of a Raspberry Pi 5, through `vcgencmd pmic_read_adc`. It covers the rails
/// behind the regulator, not the USB ports.
pub struct PmicAdc;

impl PmicAdc {
    /// Returns the regulator if the board has one.
    pub fn find() -> Option<Self> {
        let mut reader = Self;
        reader.read().map(|_| reader)
    }
}

impl EnergyReader for PmicAdc {
    fn source(&self) -> String {
        "vcgencmd pmic_read_adc, sum of the rails".to_owned()
    }

    /// Each reading starts a program.
    fn interval(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn read(&mut self) -> Option<Reading> {
        let output = Command::new("vcgencmd").arg("pmic_read_adc").output();
        let output = output.ok().filter(|output| output.status.success())?;
        rails(&String::from_utf8_lossy(&output.stdout)).map(Reading::Watts)
    }
}

/// Returns the power in watts of all rails with a current and a voltage.
fn rails(text: &str) -> Option<f64> {
    // Lines such as `VDD_CORE_A current(7)=1.20000000A` and `VDD_CORE_V volt(15)=0.72000000V`.
    let value = |line: &str, unit: char| -> Option<f64> {
        let (_, value) = line.split_once('=')?;
        value.trim().strip_suffix(unit)?.parse().ok()
    };
    let voltage = |rail: &str| {
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| {
            let name = line.split_whitespace().next();
            name.and_then(|name| name.strip_suffix("_V")) == Some(rail)
        })?;
        value(line, 'V')
    };
    let powers = text.lines().map(str::trim).filter_map(|line| {
        let rail = line.split_whitespace().next()?.strip_suffix("_A")?;
        Some(value(line, 'A')? * voltage(rail)?)
    });
    powers.reduce(|sum, power| sum + power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            write(root.path(), path, text);
        }
        root
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(path, text).expect("it can be written");
    }

    #[test]
    fn a_jetson_has_rails() {
        const MONITOR: &str = "sys/class/hwmon/hwmon1/";
        let file = |name: &str| format!("{MONITOR}{name}");
        let root = tree(&[
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            (&file("name"), "ina3221\n"),
            (&file("in1_label"), "VDD_IN\n"),
            (&file("in1_input"), "5000\n"),
            (&file("curr1_input"), "1200\n"),
            (&file("in2_label"), "VDD_CPU_GPU_CV\n"),
            (&file("in2_input"), "5000\n"),
            (&file("curr2_input"), "400\n"),
        ]);
        let mut reader = find(root.path()).expect("rails");
        assert_eq!(reader.source(), "INA3221 rails VDD_IN");
        assert_eq!(reader.read(), Some(Reading::Watts(6.0)));
        fs::remove_file(root.path().join(file("curr1_input"))).expect("it exists");
        assert_eq!(reader.read(), None);
    }

    #[test]
    fn rails_without_a_common_one_are_added() {
        const MONITOR: &str = "sys/class/hwmon/hwmon3/";
        let file = |name: &str| format!("{MONITOR}{name}");
        let root = tree(&[
            (&file("name"), "ina3221\n"),
            (&file("in1_label"), "VDD_GPU_SOC\n"),
            (&file("in1_input"), "20000\n"),
            (&file("curr1_input"), "500\n"),
            (&file("in2_label"), "VIN_SYS_5V0\n"),
            (&file("in2_input"), "5000\n"),
            (&file("curr2_input"), "1000\n"),
            (&file("in3_label"), "VDDQ_VDD2_1V8AO\n"),
            (&file("in3_input"), "5000\n"),
            (&file("curr3_input"), "100\n"),
        ]);
        let mut reader = Ina3221::find(root.path()).expect("rails");
        assert_eq!(reader.source(), "INA3221 rails VDD_GPU_SOC + VIN_SYS_5V0");
        assert_eq!(reader.read(), Some(Reading::Watts(15.0)));
    }

    #[test]
    fn counters_of_a_processor_may_restart() {
        const ENERGY: &str = "sys/class/powercap/intel-rapl:0/energy_uj";
        let root = tree(&[
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            (
                "sys/class/powercap/intel-rapl:0/max_energy_range_uj",
                "10000000\n",
            ),
            (ENERGY, "9000000\n"),
            ("sys/class/powercap/intel-rapl:0:0/name", "core\n"),
            (
                "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj",
                "10000000\n",
            ),
            ("sys/class/powercap/intel-rapl:0:0/energy_uj", "5\n"),
        ]);
        let mut reader = find(root.path()).expect("counters");
        assert_eq!(reader.source(), "RAPL package-0");
        write(root.path(), ENERGY, "9500000\n");
        assert_eq!(reader.read(), Some(Reading::Joules(0.5)));
        write(root.path(), ENERGY, "500000\n");
        assert_eq!(reader.read(), Some(Reading::Joules(1.5)));
    }

    #[test]
    fn a_regulator_lists_currents_and_voltages() {
        let text = "  3V7_WL_SW_A current(0)=0.10000000A\n  VDD_CORE_A current(7)=2.00000000A\n\
                    \x20 3V7_WL_SW_V volt(8)=3.70000000V\n  VDD_CORE_V volt(15)=0.75000000V\n\
                    \x20 EXT5V_V volt(24)=5.15000000V\n";
        let watts = rails(text).expect("rails");
        assert!((watts - 1.87).abs() < 1e-9, "{watts}");
        assert_eq!(rails("error: Command not registered"), None);
    }

    #[test]
    fn other_machines_have_no_sensor() {
        let root = tree(&[("sys/class/hwmon/hwmon0/name", "nvme\n")]);
        assert!(find(root.path()).is_none());
    }
}
