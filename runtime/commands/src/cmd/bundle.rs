//! `edge-lmm bundle`: an executable with an embedded record.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use edge_lmm::Record;
use edge_lmm::output::Output;
use edge_lmm::record::bundle;
use edge_lmm::units::bytes;

use crate::models;

use super::options::print_now;

/// Combines the program and a record into one executable file.
///
/// The file runs its record without naming it: ./qwen2-vl --image cat.jpg --prompt "What is this?"
/// The other subcommands (chat, inspect, serve, ...) work too. The record is mapped from the file,
/// not unpacked. Tools that rewrite executables, such as strip, remove it.
#[derive(Args)]
pub struct Cmd {
    /// Record to embed, or name of a model
    #[arg(long, value_name = "MODEL.bpk", value_parser = models::argument())]
    model: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Program to embed it in, such as one for another machine [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

impl Cmd {
    /// Checks that the program is named. Without a name it is the executable of this process.
    pub fn check_program_is_named(&self) -> anyhow::Result<()> {
        ensure!(
            self.program.is_some(),
            "this edge-lmm is a library within another program; name the program to embed the \
             record in with --program FILE, such as one built by cargo xtask cross"
        );
        Ok(())
    }

    pub fn run(self) -> anyhow::Result<()> {
        let output = Output::create(&self.output, self.force)?;
        let record = Record::open(&self.model)?;
        record.verify()?;
        let program = match self.program {
            Some(program) => program,
            None => std::env::current_exe()?,
        };
        let place = bundle::write(&program, &self.model, output)?;
        print_now(&format!(
            "wrote {}: program {}, record {} at {}\n",
            self.output.display(),
            bytes(place.program as usize),
            bytes(place.length as usize),
            place.offset
        ))
    }
}
