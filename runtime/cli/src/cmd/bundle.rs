//! `edge-lmm bundle`: one file that is this program with a record inside.

use std::path::PathBuf;

use clap::Args;
use edge_lmm::Record;
use edge_lmm::output::Output;
use edge_lmm::report::bytes;
use edge_lmm_record::bundle;

use super::options::print_now;

/// Makes one executable file of the program and a record.
///
/// The file runs its record without naming it: ./qwen2-vl --image cat.jpg --prompt "What is this?"
/// The other subcommands (chat, inspect, serve, ...) work on it, too. The record is mapped from the
/// file, not unpacked. Tools that rewrite executables, such as strip, throw it away.
#[derive(Args)]
pub struct Cmd {
    /// The record to put inside
    #[arg(long, value_name = "MODEL.bpk")]
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The program to put it into, such as one for another machine [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

impl Cmd {
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
