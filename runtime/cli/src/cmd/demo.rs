//! `edge-lmm demo`: an answer without external files.

use std::ops::ControlFlow;

use anyhow::ensure;
use clap::Args;
use edge_lmm::demo::{IMAGE, RECORD};
use edge_lmm::output::Output;
use edge_lmm::{Media, Record, Request, media, timing, user_message};

use super::options::{DeviceOptions, print_now};

/// Questions about the image with the expected answers.
const QUESTIONS: [(&str, &str); 2] = [
    ("how many shapes are there?", "two"),
    ("list the shapes.", "blue square, yellow cross"),
];

/// Answers questions about an embedded image with an embedded model and prints the timing.
///
/// The model has 0.8 million parameters and knows only colored shapes; it runs through the same
/// code as a real one. --question asks a different question, such as "is there a red circle?";
/// --save-image writes the image to a file.
#[derive(Args)]
pub struct Cmd {
    /// Ask this question instead of the default ones
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Write the image to a file
    #[arg(long, value_name = "FILE.png")]
    save_image: Option<std::path::PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(path) = &self.save_image {
            Output::replace(path, [])?.finish_with(IMAGE)?;
        }
        let mut recording = self.device.recording()?;
        let recorded = recording.enter();
        let record = Record::from_static(RECORD, "the embedded model")?;
        let mut session = self.device.load_record(&record)?.session();
        let image = {
            let _stage = timing::stage("media");
            Media::image(media::decode_image(IMAGE)?)
        };
        let prepared = self.question.is_none();
        let questions: Vec<(&str, &str)> = match &self.question {
            Some(question) => vec![(question, "")],
            None => QUESTIONS.to_vec(),
        };
        let mut wrong = Vec::new();
        for (question, expected) in questions {
            print_now(&format!("{question} "))?;
            let media = [image.clone()];
            let messages = [user_message(&media, question)];
            let request = Request {
                media: &media,
                max_tokens: 16,
                sampling: Default::default(),
                ..Request::new(&messages)
            };
            let answer = session.answer(&request, |_| ControlFlow::Continue(()))?;
            print_now(&format!("{}\n", answer.text))?;
            if prepared && answer.text != expected {
                wrong.push(format!("{question:?}: {:?}, not {expected:?}", answer.text));
            }
        }
        drop(recorded);
        eprintln!("{}", recording.finish());
        ensure!(
            wrong.is_empty(),
            "the demo gave a wrong answer on this machine ({}); please report it with output of \
             `edge-lmm doctor`",
            wrong.join(", ")
        );
        Ok(())
    }
}
