//! `edge-lmm profile`: time and memory of every module.

mod compare;
mod comparison;
mod noise;

use std::path::PathBuf;

use clap::Args;
use edge_lmm::output::Output;
use edge_lmm::report::AnswerReport;
use edge_lmm::{Request, user_message};

use crate::summary::summary;

use super::answer::answer;
use super::costs;
use super::options::{DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, print_now};

/// Answers one question and prints the time of every module.
///
/// The table combines the layers of a stack; --json lists every layer, --chrome-trace every call
/// (open it in https://ui.perfetto.dev or chrome://tracing).
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert
    model: PathBuf,
    /// Question to answer
    #[arg(long, value_name = "TEXT", default_value = "Describe this.")]
    prompt: String,
    #[command(flatten)]
    files: MediaFiles,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    generation: GenerationOptions,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write every call as a Chrome trace
    #[arg(long, value_name = "FILE")]
    chrome_trace: Option<PathBuf>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        // Wrong options end the program before the model is loaded.
        self.generation.sampling()?;
        self.media.check()?;
        let inputs = self.files.paths().map(|(path, _)| path);
        let inputs = inputs.chain([self.model.as_path()]);
        let trace_file = self.chrome_trace.as_deref();
        let trace_file = trace_file
            .map(|path| Output::replace(path, inputs))
            .transpose()?;
        let mut recording = self.device.recording()?;
        let recorded = recording.enter();
        let engine = self.device.load(&self.model)?;
        costs::apply(self.media.first_token_budget(), None, &engine)?;
        let media = self.files.open(&self.media)?;
        let messages = [user_message(&media, &self.prompt)];
        let request = Request {
            media: &media,
            options: self.media.options(),
            ..self.generation.request(&messages)?
        };
        let check = self.device.request_check(&engine, request.max_tokens);
        let answer = answer(&mut engine.session(), &request, &check, false)?;
        drop(recorded);
        let timing = recording.finish();
        if let Some(file) = trace_file {
            file.finish_with(&serde_json::to_vec(&timing.chrome_trace())?)?;
        }
        let text = if self.json {
            serde_json::to_string(&AnswerReport::new(&answer, &timing))?
        } else {
            format!("{}\n{}", timing, summary(&answer, &timing))
        };
        print_now(&format!("{text}\n"))
    }
}
