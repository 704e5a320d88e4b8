//! Answers a question about an image.
//!
//! ```text
//! cargo run --release -p edge-lmm --example answer [MODEL.bpk IMAGE QUESTION]
//! ```
//! Without arguments, the demo's model looks at the demo's image.

use std::error::Error;
use std::ops::ControlFlow;

use edge_lmm::{Device, Media, Record, Request, demo, media, user_message};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("{}", answer(&arguments)?);
    Ok(())
}

fn answer(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let (record, image, question) = match arguments {
        [] => (
            Record::from_static(demo::RECORD, "the demo's record")?,
            Media::image(media::decode_image(demo::IMAGE)?),
            "how many shapes are there?",
        ),
        [model, image, question] => (Record::open(model)?, Media::open(image)?, &**question),
        _ => return Err("expected MODEL.bpk IMAGE QUESTION, or nothing".into()),
    };
    // Refuses a model that cannot fit into memory.
    let (engine, _) = Device::Cpu.load_checked(&record, false)?;
    let media = [image];
    let messages = [user_message(&media, question)];
    let request = Request {
        media: &media,
        ..Request::new(&messages)
    };
    let mut session = engine.session();
    Ok(session
        .answer(&request, |_| ControlFlow::Continue(()))?
        .text)
}

#[test]
fn the_demo_is_answered() {
    assert_eq!(answer(&[]).expect("an answer"), "two");
}
