//! `cargo xtask fuzz`: feeds every reader with damaged input for a while.

use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

use crate::shell;

/// Crates that may have fuzz targets.
const CRATES: [&str; 2] = ["converter", "runtime"];

/// Runs all fuzz targets for some time each. Needs `cargo install cargo-fuzz`.
#[derive(Args)]
pub struct Cmd {
    /// Seconds per target
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u32,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let mut run = 0;
        for name in CRATES {
            let folder = shell::root().join(name);
            if !folder.join("fuzz/Cargo.toml").exists() {
                continue;
            }
            // The sanitizer's flags are not stable.
            let cargo = || {
                let mut cargo = Command::new("cargo");
                cargo
                    .arg("fuzz")
                    .env("RUSTC_BOOTSTRAP", "1")
                    .current_dir(&folder);
                cargo
            };
            let targets = shell::output(cargo().arg("list"))
                .context("cargo-fuzz is needed: cargo install cargo-fuzz")?;
            for target in targets.split_whitespace() {
                println!("== {name}: {target}");
                let limit = format!("-max_total_time={}", self.seconds);
                shell::run(cargo().args(["run", target, "--", &limit]))?;
                run += 1;
            }
        }
        ensure!(
            run > 0,
            "there are no fuzz targets in {}",
            CRATES.join(" and ")
        );
        Ok(())
    }
}
