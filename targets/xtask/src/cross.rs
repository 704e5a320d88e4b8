//! `cargo xtask cross`: builds edge-lmm for devices, and checks it under emulation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use edge_lmm_targets::{Device, device, devices};

use crate::elf::{Demands, Version};
use crate::emulate::Emulator;
use crate::{goldens, shell};

/// Most bytes of a stripped program for the CPU, as it is shipped.
const MAX_BYTES: u64 = 12_000_000;
/// Libraries that belong to the GNU C library: before 2.34 it was in several pieces, whose names
/// later ones still provide.
const C_LIBRARY: [&str; 3] = ["libpthread.so.0", "libdl.so.2", "librt.so.1"];
/// What `--check` and a build without `--target` are about.
const BOARDS: [&str; 3] = ["raspberry-pi-4", "raspberry-pi-5", "jetson-orin"];

/// Builds edge-lmm for devices.
///
/// The programs come to lie in target/dist/DEVICE/edge-lmm. AArch64 boards get the same program:
/// it asks for nothing newer than the oldest C library among them and chooses its kernels when it
/// runs. CUDA is not part of this version: on a Jetson it computes on the CPU.
#[derive(Args)]
pub struct Cmd {
    /// A device, such as raspberry-pi-5 or host; repeat for several [default: raspberry-pi-4,
    /// raspberry-pi-5, jetson-orin]
    #[arg(long, value_name = "DEVICE")]
    target: Vec<String>,
    /// Build a program that needs no shared library at all (musl)
    #[arg(long = "static")]
    fixed: bool,
    /// Run it under emulation: --version, doctor, demo, a bundle, and the reference values of the
    /// tiny Qwen2-VL; check size and shared libraries
    #[arg(long)]
    check: bool,
    /// Cargo profile: dist (the smallest), release, or cross-check, which builds in less time
    #[arg(long, value_name = "PROFILE", default_value = "dist")]
    profile: String,
}

/// A program for a device.
pub struct Built {
    /// The device.
    pub device: Device,
    /// The program.
    pub program: PathBuf,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let names: Vec<&str> = match self.target.as_slice() {
            [] => BOARDS.to_vec(),
            names => names.iter().map(String::as_str).collect(),
        };
        let built = build(&names, &self.profile, self.fixed)?;
        // What is built in a hurry is larger than what is shipped.
        let limit = (self.profile != "cross-check").then_some(MAX_BYTES);
        for built in &built {
            report(built, self.fixed, limit)?;
        }
        if self.check {
            check(&built)?;
        }
        Ok(())
    }
}

/// Builds for each device; devices of the same triple share one build.
pub fn build(names: &[&str], profile: &str, fixed: bool) -> anyhow::Result<Vec<Built>> {
    let mut programs: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut built = Vec::new();
    for name in names {
        let device = device(name)?;
        let triple = triple(&device, fixed);
        let program = match programs.get(&triple) {
            Some(program) => program.clone(),
            None => {
                let program = build_triple(&triple, profile, device.name == "host")?;
                programs.insert(triple, program.clone());
                program
            }
        };
        let folder = shell::target_dir().join("dist").join(name);
        fs::create_dir_all(&folder)?;
        let copy = folder.join("edge-lmm");
        fs::copy(&program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        built.push(Built {
            device,
            program: copy,
        });
    }
    Ok(built)
}

fn triple(device: &Device, fixed: bool) -> String {
    if fixed {
        device.triple.replace("-gnu", "-musl")
    } else {
        device.triple.clone()
    }
}

fn build_triple(triple: &str, profile: &str, host: bool) -> anyhow::Result<PathBuf> {
    let start = Instant::now();
    let folder = if profile == "dev" { "debug" } else { profile };
    let package = [
        "-p",
        "edge-lmm",
        "--bin",
        "edge-lmm",
        "--locked",
        "--profile",
    ];
    let program = if host && !triple.ends_with("-musl") {
        let mut cargo = Command::new("cargo");
        cargo.arg("build").args(package).arg(profile);
        shell::run(cargo.current_dir(shell::root()))?;
        shell::target_dir().join(folder).join("edge-lmm")
    } else {
        ensure!(
            triple.starts_with("aarch64-"),
            "there is no cross build for {triple}, only for AArch64 and for the host"
        );
        cross_build(triple, profile, &package)?;
        shell::target_dir()
            .join(triple)
            .join(folder)
            .join("edge-lmm")
    };
    println!("{triple}: built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(program)
}

/// Builds with zig as the linker, in the environment that targets/aarch64-toolchain.sh makes.
fn cross_build(triple: &str, profile: &str, package: &[&str]) -> anyhow::Result<()> {
    let environment = shell::output(
        Command::new("sh")
            .args(["targets/aarch64-toolchain.sh", "--zig", triple])
            .current_dir(shell::root()),
    )?;
    let suffix = match oldest_glibc(triple)? {
        Some(version) => format!("{triple}.{version}"),
        None => triple.to_owned(),
    };
    let script = format!(
        "{environment}\nexec cargo zigbuild $EDGE_LMM_CARGO_FLAGS --target {suffix} {} {profile}",
        package.join(" ")
    );
    shell::run(
        Command::new("sh")
            .args(["-c", &script])
            .current_dir(shell::root()),
    )
}

/// The oldest C library among the devices of a triple.
fn oldest_glibc(triple: &str) -> anyhow::Result<Option<Version>> {
    let devices = devices()?;
    let same = devices.iter().filter(|device| device.triple == triple);
    Ok(same
        .filter_map(|device| Version::parse(device.glibc.as_deref()?))
        .min())
}

/// Prints size and libraries, and refuses what a device cannot load.
fn report(built: &Built, fixed: bool, limit: Option<u64>) -> anyhow::Result<()> {
    let Built { device, program } = built;
    let demands = Demands::of(program)?;
    println!(
        "{:18} {:>5.2} MB, glibc {}, libraries: {}{}",
        device.board,
        demands.bytes as f64 / 1e6,
        demands.glibc.map_or("none".to_owned(), |v| v.to_string()),
        if demands.libraries.is_empty() {
            "none".to_owned()
        } else {
            demands.libraries.join(" ")
        },
        if device.gpu.is_some() {
            " (CPU only: this version has no CUDA)"
        } else {
            ""
        },
    );
    if let Some(limit) = limit {
        ensure!(
            demands.bytes < limit,
            "{} has {} bytes, the limit is {limit}",
            program.display(),
            demands.bytes
        );
    }
    let allowed = |library: &String| {
        !fixed
            && (device.libraries.contains(library)
                || C_LIBRARY.contains(&library.as_str())
                || library.starts_with("ld-linux"))
    };
    if let Some(library) = demands.libraries.iter().find(|library| !allowed(library)) {
        bail!(
            "{} needs {library}; only {} may be needed",
            program.display(),
            if fixed {
                "nothing".to_owned()
            } else {
                device.libraries.join(", ")
            }
        );
    }
    let offered = device.glibc.as_deref().and_then(Version::parse);
    if let (Some(needed), Some(offered)) = (demands.glibc, offered) {
        ensure!(
            needed <= offered,
            "{} needs glibc {needed}, {} has {offered}",
            program.display(),
            device.title
        );
    }
    Ok(())
}

/// Runs the programs under emulation, each core once.
fn check(built: &[Built]) -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let record = goldens::float_record(work.path())?;
    let mut cores: Vec<(String, &Path)> = Vec::new();
    for built in built {
        let emulator = Emulator::new(&built.device)?;
        let core = (emulator.name(), built.program.as_path());
        let same = |(name, program): &(String, &Path)| {
            *name == core.0 && fs::read(program).ok() == fs::read(core.1).ok()
        };
        if cores.iter().any(same) {
            println!(
                "{}: the same program and core as before",
                built.device.board
            );
            continue;
        }
        println!("== {} as {}", built.device.board, core.0);
        emulator.check(&built.program, work.path())?;
        goldens::check(&emulator, &built.program, &record, work.path())?;
        cores.push(core);
    }
    Ok(())
}
