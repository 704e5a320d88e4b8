//! `edge-lmm demo`: an answer without external files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;
use data_encoding::BASE64;
use edge_lmm::demo::{IMAGE, RECORD};
use edge_lmm::environment::Environment;
use edge_lmm::output::Output;
use edge_lmm::{Answer, AnySession, Media, Record, Request, Timing, media, timing, user_message};
use serde::Serialize;

use super::options::{DeviceOptions, print_now};
use crate::page;

/// Questions about the image with the expected answers.
const QUESTIONS: [(&str, &str); 2] = [
    ("how many shapes are there?", "two"),
    ("list the shapes.", "blue square, yellow cross"),
];
/// Page that is written unless an option says otherwise.
const PAGE: &str = "demo.html";

/// Answers questions about an embedded image with an embedded model and prints the timing.
///
/// The model has 0.8 million parameters and knows only colored shapes; it runs through the same
/// code as a real one. --question asks a different question, such as "is there a red circle?";
/// --save-image writes the image to a file. A page with the image, the answers and their stages is
/// written to demo.html, a single file for a browser.
#[derive(Args)]
pub struct Cmd {
    /// Ask this question instead of the default ones
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Write the image to a file
    #[arg(long, value_name = "FILE.png")]
    save_image: Option<PathBuf>,
    /// Write the page to this file [default: demo.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write no page
    #[arg(long, conflicts_with = "html")]
    no_html: bool,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(path) = &self.save_image {
            Output::replace(path, [])?.finish_with(IMAGE)?;
        }
        let html = self.html.as_deref().map(|path| Output::replace(path, []));
        let html = html.transpose()?;
        let mut recording = self.device.recording()?;
        let recorded = recording.enter();
        let record = Record::from_static(RECORD, "the embedded model")?;
        let engine = self.device.load_record(&record)?;
        let environment = Environment::before(engine.device(), Some(&record));
        let answers = self.answers(&mut engine.session())?;
        drop(recorded);
        let timing = recording.finish();
        eprintln!("{timing}");
        let report = DemoReport::new(&answers, &timing, environment);
        self.write_page(html, &report)?;
        let wrong: Vec<String> = answers.iter().filter_map(Answered::mistake).collect();
        ensure!(
            wrong.is_empty(),
            "the demo gave a wrong answer on this machine ({}); please report it with output of \
             `edge-lmm doctor`",
            wrong.join(", ")
        );
        Ok(())
    }

    /// Asks the questions and prints the answers.
    fn answers(&self, session: &mut AnySession) -> anyhow::Result<Vec<Answered<'_>>> {
        let image = {
            let _stage = timing::stage("media");
            Media::image(media::decode_image(IMAGE)?)
        };
        let questions = match &self.question {
            Some(question) => vec![(question.as_str(), None)],
            None => QUESTIONS
                .map(|(question, answer)| (question, Some(answer)))
                .to_vec(),
        };
        let mut answers = Vec::new();
        for (question, expected) in questions {
            print_now(&format!("{question} "))?;
            let media = [image.clone()];
            let messages = [user_message(&media, question)];
            let request = Request {
                media: &media,
                max_tokens: 16,
                sampling: Default::default(),
                timing: true,
                ..Request::new(&messages)
            };
            let answer = session.answer(&request, |_| ControlFlow::Continue(()))?;
            print_now(&format!("{}\n", answer.text))?;
            answers.push(Answered {
                question,
                expected,
                answer,
            });
        }
        Ok(answers)
    }

    /// Writes the page. A folder that cannot be written is an error only if the user chose it.
    fn write_page(&self, chosen: Option<Output>, report: &DemoReport) -> anyhow::Result<()> {
        if self.no_html {
            return Ok(());
        }
        let path = self.html.as_deref().unwrap_or(Path::new(PAGE));
        let page = page::demo(report)?;
        let written = match chosen {
            Some(file) => file.finish_with(page.as_bytes()),
            None => Output::replace(path, []).and_then(|file| file.finish_with(page.as_bytes())),
        };
        match written {
            Ok(()) => eprintln!("wrote {}: open it in a browser", path.display()),
            Err(error) if self.html.is_none() => log::warn!("no page is written: {error}"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A question with its answer.
struct Answered<'a> {
    question: &'a str,
    expected: Option<&'a str>,
    answer: Answer,
}

impl Answered<'_> {
    /// Describes an unexpected answer.
    fn mistake(&self) -> Option<String> {
        let (question, text) = (self.question, &self.answer.text);
        let expected = self.expected.filter(|expected| expected != text)?;
        Some(format!("{question:?}: {text:?}, not {expected:?}"))
    }
}

/// Data of the page.
#[derive(Serialize)]
struct DemoReport {
    /// The image as a `data:` URL.
    image: String,
    load_ms: f64,
    answers: Vec<PageAnswer>,
    environment: Environment,
}

#[derive(Serialize)]
struct PageAnswer {
    question: String,
    text: String,
    first_token_ms: f64,
    tokens_per_second: Option<f64>,
    prompt_tokens: usize,
    visual_tokens: usize,
    reused_tokens: usize,
    stages: Vec<PageStage>,
}

#[derive(Serialize)]
struct PageStage {
    name: String,
    ms: f64,
}

impl DemoReport {
    fn new(answers: &[Answered<'_>], timing: &Timing, environment: Environment) -> Self {
        Self {
            image: format!("data:image/png;base64,{}", BASE64.encode(IMAGE)),
            load_ms: timing.stage("load").map_or(0.0, |stage| stage.ms()),
            answers: answers.iter().map(PageAnswer::new).collect(),
            environment,
        }
    }
}

impl PageAnswer {
    fn new(answered: &Answered<'_>) -> Self {
        let answer = &answered.answer;
        let stages = answer.timing.stages().iter().filter(|stage| stage.is_top());
        Self {
            question: answered.question.to_owned(),
            text: answer.text.clone(),
            first_token_ms: 1e3 * answer.first_token.as_secs_f64(),
            tokens_per_second: answer.tokens_per_second(&answer.timing),
            prompt_tokens: answer.prompt_tokens,
            visual_tokens: answer.visual_tokens,
            reused_tokens: answer.reused_tokens,
            stages: stages
                .map(|stage| PageStage {
                    name: stage.name.clone(),
                    ms: stage.ms(),
                })
                .collect(),
        }
    }
}
