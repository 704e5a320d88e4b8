//! `cargo xtask bundle`: an executable for a device with an embedded record.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use edge_lmm_record::bundle;
use edge_lmm_record::output::Output;

use crate::cross::{self, BuildOptions};
use crate::emulate::Emulator;
use crate::shell;

/// Builds edge-lmm for a device and embeds a record in it.
///
/// Example: cargo xtask bundle --target raspberry-pi-5 --model qwen2-vl-2b.bpk -o edge-qwen2-vl
#[derive(Args)]
pub struct Cmd {
    /// Device, such as raspberry-pi-5 or host
    #[arg(long, value_name = "DEVICE")]
    target: String,
    /// Record to embed
    #[arg(long, value_name = "MODEL.bpk")]
    model: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Program to use instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    build: BuildOptions,
    /// Skip running the finished file as a check (under emulation if necessary)
    #[arg(long)]
    no_check: bool,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let output = Output::create(&self.output, self.force)?;
        let device = edge_lmm_targets::device(&self.target)?;
        let program = match self.program {
            Some(program) => program,
            None => {
                let built = cross::build(&[&self.target], &self.build)?;
                built[0].program.clone()
            }
        };
        let place = bundle::write(&program, &self.model, output)?;
        println!(
            "wrote {}: program {} bytes, record {} bytes at {}",
            self.output.display(),
            place.program,
            place.length,
            place.offset
        );
        if self.no_check {
            return Ok(());
        }
        let mut inspect: Command = Emulator::new(&device)?.command(&self.output.canonicalize()?);
        let name = device.name.as_str();
        let text = shell::output(inspect.args(["inspect", "--verify", "--target", name]))?;
        print!("{text}");
        Ok(())
    }
}
