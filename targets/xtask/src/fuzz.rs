//! `cargo xtask fuzz`: feeds damaged input to every parser.

use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::shell;

/// Fails on inputs that take more time or memory than any input of the tests.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=2560", "-malloc_limit_mb=1024"];

/// Runs the fuzz targets, each for a given time. Requires `cargo install cargo-fuzz`.
#[derive(Args)]
pub struct Cmd {
    /// Seconds per target
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u32,
    /// Maximum number of inputs per target
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
    /// Maximum input length in bytes
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_len: usize,
    /// What checks the memory; without it, a target runs several times as fast
    #[arg(long, value_enum, default_value_t)]
    sanitizer: Sanitizer,
    /// Targets to run, all by default
    targets: Vec<String>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Sanitizer {
    /// AddressSanitizer
    #[default]
    Address,
    /// Nothing: enough for code without `unsafe`
    None,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::None => "none",
        }
    }

    /// Libraries at the highest level take far longer to build than a short run gains.
    fn opt_level(self) -> &'static str {
        match self {
            Self::Address => "1",
            Self::None => "3",
        }
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let all = shell::output(&mut cargo_fuzz("list"))
            .context("cargo-fuzz is missing; run cargo install cargo-fuzz")?;
        let all: Vec<&str> = all.split_whitespace().collect();
        ensure!(!all.is_empty(), "there are no fuzz targets");
        for name in &self.targets {
            let is_known = all.contains(&name.as_str());
            ensure!(
                is_known,
                "there is no fuzz target {name}: expected {}",
                all.join(", ")
            );
        }
        let is_wanted =
            |name: &&&str| self.targets.is_empty() || self.targets.iter().any(|t| t == **name);
        for name in all.iter().filter(is_wanted) {
            println!("== {name}");
            let mut command = cargo_fuzz("run");
            command
                .env(
                    "CARGO_PROFILE_RELEASE_OPT_LEVEL",
                    self.sanitizer.opt_level(),
                )
                .args(["--sanitizer", self.sanitizer.name()])
                .args(["--features", "libfuzzer", name, "--"]);
            command.args(LIMITS);
            command.arg(format!("-max_total_time={}", self.seconds));
            command.arg(format!("-max_len={}", self.max_len));
            if let Some(inputs) = self.inputs {
                command.arg(format!("-runs={inputs}"));
            }
            // Libraries print to standard output.
            command.args(["-close_fd_mask=1", "-print_final_stats=1"]);
            shell::run(&mut command)?;
        }
        Ok(())
    }
}

fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["fuzz", command])
        .current_dir(shell::root().join("targets"));
    // The flags for coverage are unstable; symbols make reports readable.
    cargo.envs([
        ("RUSTC_BOOTSTRAP", "1"),
        ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ]);
    // Freed memory counts as used while quarantined for use-after-free checks.
    cargo.env(
        "ASAN_OPTIONS",
        "quarantine_size_mb=16:detect_stack_use_after_return=0",
    );
    cargo
}
