//! `cargo xtask cross`: builds edge-lmm for devices and checks it under emulation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use edge_lmm_targets::{Build, Device, device, devices};

use crate::elf::{Requirements, Version};
use crate::emulate::Emulator;
use crate::{goldens, shell};

/// Maximum size of a stripped CPU program, as shipped, in bytes.
const MAX_BYTES: u64 = 16_000_000;
/// The runtime program; crate and file have the same name.
const RUNTIME: &str = "edge-lmm";
/// The package that builds it.
pub const RUNTIME_PACKAGE: &str = "edge-lmm-cli";
/// The program that makes records.
pub const CONVERTER: &str = "edge-lmm-convert";
/// Libraries of the GNU C library: before 2.34 it consisted of several files, whose names newer
/// versions still provide.
const C_LIBRARY: [&str; 3] = ["libpthread.so.0", "libdl.so.2", "librt.so.1"];

/// Builds edge-lmm for devices.
///
/// The programs are written to target/devices/DEVICE/edge-lmm, static ones to
/// target/devices/DEVICE-static/edge-lmm. AArch64 boards share one program, those with an NVIDIA
/// GPU one with CUDA. It is linked against the oldest C library among them and selects its kernels
/// at run time. Prints the size of each program and the C library and shared libraries it requires.
#[derive(Args)]
pub struct Cmd {
    /// Device, such as raspberry-pi-5 or host; may be repeated [default: every board]
    #[arg(long, value_name = "DEVICE")]
    target: Vec<String>,
    #[command(flatten)]
    build: BuildOptions,
    /// Run it under emulation: --version, doctor, demo, a bundle, and the reference values of the
    /// tiny Qwen2-VL
    #[arg(long)]
    check: bool,
}

/// Build settings of edge-lmm for devices, bundles and packages.
#[derive(Args)]
pub struct BuildOptions {
    /// Build a program without shared libraries (musl); it cannot load any either, so it only
    /// supports the CPU
    #[arg(long = "static")]
    fixed: bool,
    /// Omit devices other than the CPU: CUDA, on a Jetson
    #[arg(long)]
    cpu_only: bool,
    /// Additional Cargo features of edge-lmm; may be repeated
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    features: Vec<String>,
    /// Cargo profile: dist (smallest), release, or cross-check, which builds faster
    #[arg(long, value_name = "PROFILE", default_value = "dist")]
    profile: String,
}

impl BuildOptions {
    /// Returns the Rust target of a program for a device.
    pub fn triple(&self, device: &Device) -> String {
        if self.fixed {
            device.triple.replace("-gnu", "-musl")
        } else {
            device.triple.clone()
        }
    }

    /// Returns the build settings of a device's profile with the requested features.
    pub fn build(&self, device: &Device) -> Build {
        let mut build = match self.cpu_only || self.fixed {
            true => Build::default(),
            false => device.build.clone(),
        };
        for feature in &self.features {
            if !build.has(feature) {
                build.features.push(feature.clone());
            }
        }
        build
    }

    /// Returns the maximum size of the program for a device, if it is shipped on a board. Programs
    /// for more than the CPU are larger, as are x86-64 ones with their many instruction sets.
    fn limit(&self, device: &Device) -> Option<u64> {
        let shipped = self.profile == "dist" && self.build(device).features.is_empty();
        (shipped && device.triple.starts_with("aarch64")).then_some(MAX_BYTES)
    }
}

/// A program built for a device.
pub struct Built {
    /// The device.
    pub device: Device,
    /// Its build settings.
    pub build: Build,
    /// Path of the program.
    pub program: PathBuf,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let names = match self.target.is_empty() {
            true => boards()?,
            false => self.target,
        };
        let built = build(&names, &self.build)?;
        if self.check {
            check(&built)?;
        }
        Ok(())
    }
}

/// Lists every board with a profile.
fn boards() -> anyhow::Result<Vec<String>> {
    let mut boards: Vec<String> = devices()?.into_iter().map(|device| device.board).collect();
    boards.dedup();
    Ok(boards)
}

/// Builds for each device; devices with the same triple and features share a build. Fails if a
/// device could not load its program, or if the program is too large.
pub fn build(names: &[impl AsRef<str>], options: &BuildOptions) -> anyhow::Result<Vec<Built>> {
    let mut programs: BTreeMap<(String, Build), PathBuf> = BTreeMap::new();
    let mut built = Vec::new();
    for name in names.iter().map(AsRef::as_ref) {
        let device = device(name)?;
        let kind = (options.triple(&device), options.build(&device));
        let suffix = if options.fixed { "-static" } else { "" };
        let folder = shell::target_dir()
            .join("devices")
            .join(format!("{name}{suffix}"));
        fs::create_dir_all(&folder)?;
        let program = folder.join("edge-lmm");
        let source = match programs.get(&kind) {
            Some(same) => same.clone(),
            None => build_program(
                (RUNTIME_PACKAGE, RUNTIME),
                &kind.0,
                &kind.1,
                &options.profile,
                device.name == "host",
            )?,
        };
        fs::copy(&source, &program).with_context(|| format!("cannot copy {}", source.display()))?;
        let limit = options.limit(&device);
        let one = Built {
            device,
            build: kind.1.clone(),
            program: program.clone(),
        };
        report(&one, options.fixed, limit)?;
        // Uses the copy, because the next build overwrites cargo's file.
        programs.entry(kind).or_insert(program);
        built.push(one);
    }
    Ok(built)
}

/// Builds the converter for a device beside its `edge-lmm`. It only supports the CPU.
pub fn build_converter(built: &Built, options: &BuildOptions) -> anyhow::Result<PathBuf> {
    let host = built.device.name == "host";
    let triple = options.triple(&built.device);
    let source = build_program(
        (CONVERTER, CONVERTER),
        &triple,
        &Build::default(),
        &options.profile,
        host,
    )?;
    let program = built.program.with_file_name(CONVERTER);
    fs::copy(&source, &program).with_context(|| format!("cannot copy {}", source.display()))?;
    let one = Built {
        device: built.device.clone(),
        build: Build::default(),
        program: program.clone(),
    };
    report(&one, options.fixed, None)?;
    Ok(program)
}

/// Builds the program of a package with cargo and returns its path.
fn build_program(
    (package, binary): (&str, &str),
    triple: &str,
    build: &Build,
    profile: &str,
    host: bool,
) -> anyhow::Result<PathBuf> {
    let start = Instant::now();
    let folder = if profile == "dev" { "debug" } else { profile };
    let mut arguments = vec!["--package", package, "--bin", binary, "--locked"];
    arguments.extend(["--profile", profile]);
    for feature in &build.features {
        arguments.extend(["--features", feature]);
    }
    let (mut cargo, program) = if host && !triple.ends_with("-musl") {
        let mut cargo = Command::new("cargo");
        cargo.arg("build").args(arguments);
        (cargo, shell::target_dir().join(folder))
    } else {
        ensure!(
            triple.starts_with("aarch64-") || triple == "x86_64-unknown-linux-musl",
            "cannot cross-build for {triple}; expected AArch64, or x86-64 on such a machine"
        );
        let cargo = cross_build(triple, &arguments)?;
        (cargo, shell::target_dir().join(triple).join(folder))
    };
    // Variables set by the caller take precedence.
    let unset = |(name, _): &(&String, &String)| std::env::var_os(name).is_none();
    cargo.envs(build.environment.iter().filter(unset));
    shell::run(cargo.current_dir(shell::root()))?;
    println!("{triple}: built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(program.join(binary))
}

/// Returns a build command with zig as the linker, in the environment of
/// targets/aarch64-toolchain.sh.
fn cross_build(triple: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    let environment = shell::output(
        Command::new("sh")
            .args(["targets/aarch64-toolchain.sh", "--zig", triple])
            .current_dir(shell::root()),
    )?;
    let suffix = match oldest_glibc(triple)? {
        Some(version) => format!("{triple}.{version}"),
        None => triple.to_owned(),
    };
    // The arguments follow the script, so that the shell does not interpret them.
    let script = format!(
        "{environment}\nexec cargo zigbuild $EDGE_LMM_CARGO_FLAGS --target {suffix} \"$@\""
    );
    let mut cargo = Command::new("sh");
    cargo.args(["-c", &script, "cargo"]).args(arguments);
    Ok(cargo)
}

/// Returns the oldest C library among the devices of a triple.
fn oldest_glibc(triple: &str) -> anyhow::Result<Option<Version>> {
    let devices = devices()?;
    let same = devices.iter().filter(|device| device.triple == triple);
    Ok(same
        .filter_map(|device| Version::parse(device.glibc.as_deref()?))
        .min())
}

/// Prints size and libraries, and rejects a program that a device cannot load.
fn report(built: &Built, fixed: bool, limit: Option<u64>) -> anyhow::Result<()> {
    let Built {
        device,
        build,
        program,
    } = built;
    let requirements = Requirements::of(program)?;
    println!(
        "{:18} {}{:>5.2} MB, glibc {}, libraries: {}",
        device.board,
        build
            .features
            .iter()
            .map(|feature| format!("with {feature}, "))
            .collect::<String>(),
        requirements.bytes as f64 / 1e6,
        requirements
            .glibc
            .map_or("none".to_owned(), |v| v.to_string()),
        if requirements.libraries.is_empty() {
            "none".to_owned()
        } else {
            requirements.libraries.join(" ")
        },
    );
    if let Some(limit) = limit {
        ensure!(
            requirements.bytes < limit,
            "{} is {} bytes, the limit is {limit}",
            program.display(),
            requirements.bytes
        );
    }
    let allowed = |library: &String| {
        !fixed
            && (device.libraries.contains(library)
                || C_LIBRARY.contains(&library.as_str())
                || library.starts_with("ld-linux"))
    };
    if let Some(library) = requirements
        .libraries
        .iter()
        .find(|library| !allowed(library))
    {
        bail!(
            "{} requires {library}; expected only {}",
            program.display(),
            if fixed {
                "nothing".to_owned()
            } else {
                device.libraries.join(", ")
            }
        );
    }
    let offered = device.glibc.as_deref().and_then(Version::parse);
    if let (Some(needed), Some(offered)) = (requirements.glibc, offered) {
        ensure!(
            needed <= offered,
            "{} requires glibc {needed}, {} has {offered}",
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
        if built.build.has("cuda") {
            emulator.check_without_cuda(&built.program)?;
        }
        goldens::check(&emulator, &built.program, &record, work.path())?;
        cores.push(core);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        build: BuildOptions,
    }

    fn options(arguments: &[&str]) -> BuildOptions {
        let line = ["cross"].iter().chain(arguments);
        Line::try_parse_from(line).expect("valid arguments").build
    }

    #[test]
    fn what_is_shipped_for_the_cpu_has_a_limit_of_size() {
        let limit = |arguments, name| options(arguments).limit(&device(name).unwrap());
        let pi = "raspberry-pi-5";
        assert_eq!(limit(&[], pi), Some(MAX_BYTES));
        assert_eq!(limit(&["--profile", "cross-check"], pi), None);
        assert_eq!(limit(&["--features", "one"], pi), None);
        let jetson = "jetson-orin-nano";
        assert_eq!(limit(&[], jetson), None);
        assert_eq!(limit(&["--cpu-only"], jetson), Some(MAX_BYTES));
    }

    #[test]
    fn features_are_those_of_the_profile_and_those_asked_for() {
        let features = |arguments: &[&str], name| {
            let build = options(arguments).build(&device(name).unwrap());
            (build.features.join(" "), build.environment.len())
        };
        let jetson = "jetson-agx-orin-64gb";
        assert_eq!(features(&[], "raspberry-pi-5"), (String::new(), 0));
        assert_eq!(features(&[], jetson), ("cuda".to_owned(), 1));
        let more = ["--features", "vulkan,cuda"];
        assert_eq!(features(&more, jetson), ("cuda vulkan".to_owned(), 1));
        assert_eq!(features(&["--cpu-only"], jetson), (String::new(), 0));
        assert_eq!(features(&["--static"], jetson), (String::new(), 0));
    }

    #[test]
    fn a_static_program_has_another_c_library() {
        let pi = device("raspberry-pi-5").unwrap();
        assert_eq!(options(&[]).triple(&pi), "aarch64-unknown-linux-gnu");
        let fixed = options(&["--static"]);
        assert_eq!(fixed.triple(&pi), "aarch64-unknown-linux-musl");
    }

    #[test]
    fn every_board_is_built_once() {
        let boards = boards().unwrap();
        assert_eq!(boards.len(), 5, "{boards:?}");
        assert!(boards.iter().all(|board| device(board).is_ok()));
    }
}
