//! Streams an answer token by token and cancels it after a time.
//!
//! ```text
//! cargo run --release -p edge-lmm --example stream [MODEL.bpk IMAGE QUESTION]
//! ```
//! Without arguments, the demo's model looks at the demo's image.

use std::error::Error;
use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use edge_lmm::{Cpu, Engine, Media, Record, Request, demo, media, user_message};

/// The answer is canceled when it takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (record, image, question) = match &arguments[..] {
        [] => (
            Record::from_static(demo::RECORD, "the demo's record")?,
            Media::image(media::decode_image(demo::IMAGE)?),
            "list the shapes.",
        ),
        [model, image, question] => (Record::open(model)?, Media::open(image)?, &**question),
        _ => return Err("expected MODEL.bpk IMAGE QUESTION, or nothing".into()),
    };
    let engine = Engine::<Cpu>::load(&record, Default::default())?;
    let mut session = engine.session();
    let media = [image];
    let messages = [user_message(&media, question)];
    let request = Request {
        media: &media,
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
