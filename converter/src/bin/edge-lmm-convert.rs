//! The program `edge-lmm-convert`.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_lmm_convert::main(std::env::args_os()).into()
}
