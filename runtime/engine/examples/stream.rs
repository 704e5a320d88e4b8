//! Streams an answer token by token and cancels it after a time.
//!
//! ```text
//! cargo run --release -p edge-lmm --example stream [MODEL.bpk QUESTION]
//! ```

use std::error::Error;
use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use edge_lmm::{Cpu, Engine, Message, Record, Request, Role, demo};

/// The answer is canceled when it takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (record, question) = match &arguments[..] {
        [] => (
            Record::from_static(demo::RECORD, "the demo's record")?,
            "list the shapes.",
        ),
        [model, question] => (Record::open(model)?, &**question),
        _ => return Err("expected MODEL.bpk QUESTION, or nothing".into()),
    };
    let engine = Engine::<Cpu>::load(&record, Default::default())?;
    let mut session = engine.session();
    let messages = [Message::text(Role::User, question)];
    let request = Request {
        max_tokens: 64,
        ..Request::new(&messages)
    };
    let start = Instant::now();
    // The callback is asked between layers until the first token is known.
    let mut generation =
        session.generate(&request, Vec::new(), |_| match start.elapsed() > PATIENCE {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })?;
    for token in &mut generation {
        print!("{}", token?.text);
        stdout().flush()?;
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    let (answer, rest) = generation.finish()?;
    println!("{rest}");
    eprintln!(
        "{} tokens, ended by {:?}",
        answer.tokens.len(),
        answer.finish_reason
    );
    Ok(())
}
