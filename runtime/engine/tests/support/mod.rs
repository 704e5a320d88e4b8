//! The embedded model, and tests that run with every instruction set.

use std::ops::ControlFlow;
use std::process::Command;

use edge_lmm::{Cpu, Engine, Event, Record, demo};
use edge_lmm_kernels::Isa;

pub fn engine() -> Engine<Cpu> {
    let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
    Engine::load(&record, Default::default()).expect("an engine")
}

pub fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Runs a test of the same file again with each instruction set, in processes of their own.
pub fn on_every_isa(test: &str) {
    let program = std::env::current_exe().expect("the test program");
    for isa in Isa::available() {
        let run = Command::new(&program)
            .args(["--exact", test, "--ignored"])
            .env("EDGE_LMM_ISA", isa.name())
            .output()
            .expect("the test program runs");
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(output.contains("1 passed"), "{isa}: {output}");
    }
}
