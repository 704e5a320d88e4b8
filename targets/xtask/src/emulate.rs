//! Runs of a program as on a device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, ensure};
use edge_lmm_record::bundle;
use edge_lmm_record::output;
use edge_lmm_targets::Device;

use crate::shell;

/// Location of the AArch64 C library on Debian.
const SYSTEM_ROOT: &str = "/usr/aarch64-linux-gnu";

/// qemu with a certain core, or this machine.
pub struct Emulator {
    cpu: Option<String>,
}

/// Returns the path of the demo record: text in 4 bits, the vision tower in 8.
pub fn demo_record() -> PathBuf {
    shell::root().join("models/demo/qwen2vl-tiny.bpk")
}

impl Emulator {
    /// Creates an emulator for a device.
    pub fn new(device: &Device) -> anyhow::Result<Self> {
        let native = device.triple.starts_with(std::env::consts::ARCH);
        let cpu = device.emulator_cpu.clone().filter(|_| !native);
        ensure!(
            native || cpu.is_some(),
            "no emulator runs programs for {}",
            device.title
        );
        Ok(Self { cpu })
    }

    /// Returns the name of the core.
    pub fn name(&self) -> String {
        self.cpu
            .clone()
            .unwrap_or_else(|| "this machine".to_owned())
    }

    /// Returns the command that runs `program`.
    pub fn command(&self, program: &Path) -> Command {
        match &self.cpu {
            None => Command::new(program),
            Some(cpu) => {
                let mut command = Command::new("qemu-aarch64");
                command.args(["-cpu", cpu, "-L", SYSTEM_ROOT]).arg(program);
                command
            }
        }
    }

    fn output(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let start = Instant::now();
        let text = shell::output(self.command(program).args(arguments))?;
        let seconds = start.elapsed().as_secs_f64();
        println!("  {} {seconds:.1} s", arguments.first().unwrap_or(&""));
        Ok(text)
    }

    /// Checks that the program starts, detects its machine, answers correctly, and works as a
    /// bundle.
    pub fn check(&self, program: &Path, work: &Path) -> anyhow::Result<()> {
        let version = self.output(program, &["--version"])?;
        ensure!(
            version.starts_with("edge-lmm "),
            "--version says {version:?}"
        );
        let doctor = self.output(program, &["doctor", "--json"])?;
        let doctor: serde_json::Value = serde_json::from_str(&doctor).context("doctor --json")?;
        println!(
            "  kernels: {} of {}",
            doctor["kernels"], doctor["kernels_available"]
        );
        // The demo checks its own answers.
        print!("{}", self.output(program, &["demo", "--no-html"])?);
        self.check_bundle(program, work)
    }

    /// Checks that a program with CUDA runs without CUDA's libraries: with the GPU selected it
    /// reports what is missing, and it uses the CPU if that is allowed. Only the emulated system is
    /// certain to lack the libraries.
    pub fn check_without_cuda(&self, program: &Path) -> anyhow::Result<()> {
        if self.cpu.is_none() {
            return Ok(());
        }
        let demo = |device: &str| {
            let mut command = self.command(program);
            shell::attempt(command.args(["demo", "--no-html", "--device", device]))
        };
        let missing = |output: &Output| {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                message.contains("libcuda.so.1 cannot be opened"),
                "missing libcuda.so.1 is not reported: {message}"
            );
            Ok(message)
        };
        let refused = demo("cuda")?;
        let message = missing(&refused)?;
        ensure!(
            refused.status.code() == Some(1) && message.starts_with("error: "),
            "--device cuda without CUDA ends with {}: {message}",
            refused.status
        );
        let answered = demo("cuda,cpu")?;
        missing(&answered)?;
        ensure!(
            answered.status.success(),
            "--device cuda,cpu without CUDA ends with {}",
            answered.status
        );
        println!("  without CUDA: --device cuda fails, cuda,cpu answers on the CPU");
        Ok(())
    }

    /// Checks that a bundle answers without naming a record, and is rejected once a byte has
    /// changed.
    fn check_bundle(&self, program: &Path, work: &Path) -> anyhow::Result<()> {
        let bundled = work.join("bundle");
        let place = bundle::write(
            program,
            &demo_record(),
            output::Output::create(&bundled, true)?,
        )?;
        let image = shell::root().join("models/demo/shapes.png");
        let question = ["--prompt", "how many shapes are there?", "--image"];
        let ask = |bundled: &Path| {
            let mut command = self.command(bundled);
            command.args(question).arg(&image);
            command
        };
        let answer = shell::output(&mut ask(&bundled))?;
        ensure!(
            answer.trim() == "two",
            "the bundle answers {answer:?}, not \"two\""
        );
        println!("  a bundle answers {:?}", answer.trim());
        let whole = fs::read(&bundled)?;
        let middle = (place.offset + place.length / 2) as usize;
        let mut changed = whole.clone();
        changed[middle] ^= 1;
        for (what, bytes) in [
            ("a changed byte", &changed[..]),
            ("a missing end", &whole[..middle]),
        ] {
            fs::write(&bundled, bytes)?;
            let output = shell::attempt(&mut ask(&bundled))?;
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1) && message.contains("damaged"),
                "a bundle with {what} is not rejected ({}): {message}",
                output.status
            );
        }
        println!("  damaged bundles are rejected");
        Ok(())
    }
}
