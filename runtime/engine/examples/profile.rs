//! Shows where the time of an answer goes, module by module, and writes a Chrome trace.
//!
//! ```text
//! cargo run --release -p edge-lmm --example profile [MODEL.bpk QUESTION TRACE.json]
//! ```
//! Open the trace in <https://ui.perfetto.dev>.

use std::error::Error;
use std::ops::ControlFlow;

use edge_lmm::memory::{CountingAllocator, keep_large_blocks};
use edge_lmm::{Device, Message, Record, Recording, Request, Role, demo};

/// Counts heap bytes, so that timing has a peak for each stage.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> Result<(), Box<dyn Error>> {
    keep_large_blocks();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, question, trace) = match &arguments[..] {
        [] => (None, "list the shapes.", None),
        [model, question, trace] => (Some(model), &**question, Some(trace)),
        _ => return Err("expected MODEL.bpk QUESTION TRACE.json, or nothing".into()),
    };
    // The recording includes the loading of the model; `Request::timing` would leave it out.
    let mut recording = Recording::new(Device::Cpu);
    let answer = recording.run(|| -> Result<_, Box<dyn Error>> {
        let record = match model {
            Some(path) => Record::open(path)?,
            None => Record::from_static(demo::RECORD, "the demo's record")?,
        };
        let mut session = Device::Cpu.load(&record)?.session();
        let messages = [Message::text(Role::User, question)];
        let request = Request {
            max_tokens: 32,
            ..Request::new(&messages)
        };
        Ok(session.answer(&request, |_| ControlFlow::Continue(()))?)
    })?;
    let timing = recording.finish();
    println!("{}\n\n{timing}", answer.text);
    if let Some(speed) = answer.tokens_per_second(&timing) {
        println!("{speed:.1} tokens/s");
    }
    let slowest = timing.stages().iter().filter(|s| s.name != s.stage);
    if let Some(slowest) = slowest.max_by_key(|stage| stage.time) {
        println!("slowest module: {} ({:.2} ms)", slowest.name, slowest.ms());
    }
    if let Some(path) = trace {
        std::fs::write(path, timing.chrome_trace().to_string())?;
    }
    Ok(())
}
