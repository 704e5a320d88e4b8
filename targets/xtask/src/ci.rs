//! `cargo xtask ci`: all checks that must pass before a change is merged.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;

/// Checks formatting, spelling, dependencies, lints, documentation and tests, the GPU kernels on a
/// software device, and the kernels and the program for AArch64 under emulation.
#[derive(Args)]
pub struct Cmd {
    /// Skip AArch64, which installs an emulator and cross linkers
    #[arg(long)]
    no_cross: bool,
    /// Skip the GPU kernels, which install a Vulkan driver
    #[arg(long)]
    no_gpu: bool,
}

/// A step: its name, the command, and additional environment variables.
type Step<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

const STEPS: &[Step<'_>] = &[
    ("formatting", &["cargo", "fmt", "--all", "--check"], &[]),
    ("spelling", &["sh", "targets/check-tool.sh", "typos"], &[]),
    ("shell scripts", &["sh", "targets/check-shell.sh"], &[]),
    (
        "install script",
        &["sh", "targets/packaging/test-install-script.sh"],
        &[],
    ),
    (
        "dependencies",
        // Advisories change independently of the code; .github/workflows/advisories.yml checks
        // them.
        &[
            "sh",
            "targets/check-tool.sh",
            "cargo-deny",
            "--locked",
            "check",
            "bans",
            "licenses",
            "sources",
        ],
        &[],
    ),
    (
        "library alone",
        // The command turns on features that a program with the library need not have.
        &[
            "cargo",
            "clippy",
            "-p",
            "edge-lmm",
            "--no-default-features",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    ),
    (
        "lints",
        &[
            "cargo",
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "edge-lmm-cli/plots,edge-lmm-fuzz/desk",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    ),
    (
        "documentation",
        &["cargo", "doc", "--workspace", "--no-deps"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    ),
    ("tests", &["cargo", "test", "--workspace"], &[]),
    (
        "tests of desk features",
        &[
            "cargo",
            "test",
            "-p",
            "edge-lmm-cli",
            "-p",
            "edge-lmm-commands",
            "-p",
            "edge-lmm-fuzz",
            "--features",
            "edge-lmm-cli/data,edge-lmm-cli/plots,edge-lmm-cli/pull,edge-lmm-fuzz/desk",
            "--lib",
            "--test",
            "data",
            "--test",
            "pull",
            "--test",
            "desk",
        ],
        &[],
    ),
    // Uses the programs that the tests have built.
    ("pages and commands", &["cargo", "xtask", "docs"], &[]),
    (
        "Python profiler",
        // The wheel is another build of all dependencies; test-python.sh without an option makes it.
        &["sh", "targets/test-python.sh", "--pure"],
        &[],
    ),
];

const GPU: &[Step<'_>] = &[("GPU kernels", &["sh", "targets/test-gpu-kernels.sh"], &[])];

const CROSS: &[Step<'_>] = &[
    ("AArch64 kernels", &["sh", "targets/test-aarch64.sh"], &[]),
    (
        "AArch64 program",
        // The emulator has no GPU, and CUDA's libraries take minutes to build.
        &[
            "cargo",
            "xtask",
            "cross",
            "--profile",
            "cross-check",
            "--cpu-only",
            "--check",
        ],
        &[],
    ),
];

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cross = if self.no_cross { &[] } else { CROSS };
        let gpu = if self.no_gpu { &[] } else { GPU };
        for step in STEPS.iter().chain(gpu).chain(cross) {
            run(step, &root)?;
        }
        Ok(())
    }
}

fn run((name, command, environment): &Step<'_>, root: &Path) -> anyhow::Result<()> {
    let [program, arguments @ ..] = command else {
        bail!("the step {name} has no command");
    };
    println!("== {name}: {}", command.join(" "));
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
