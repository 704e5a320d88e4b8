//! `edge-lmm profile`: time and memory of every module.

use std::path::PathBuf;

use clap::Args;
use edge_lmm::output::Output;
use edge_lmm::report::AnswerReport;
use edge_lmm::{Request, trace};
use edge_lmm_ops::stage;

use crate::timing::{summary, table};

use super::answer::answer;
use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, print_now, user_message,
};

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
        let sampling = self.generation.sampling()?;
        let inputs = self.files.paths().map(|(path, _)| path);
        let inputs = inputs.chain([self.model.as_path()]);
        let trace_file = self.chrome_trace.as_deref();
        let trace_file = trace_file
            .map(|path| Output::replace(path, inputs))
            .transpose()?;
        self.device.record_stages()?;
        let record = self.device.open(&self.model)?;
        let mut engine = self.device.load_record(&record)?;
        let media = self.files.open(&self.media)?;
        let messages = [user_message(&media, &self.prompt)];
        let request = Request {
            media: &media,
            options: self.media.options(),
            max_tokens: self.generation.max_tokens,
            ignore_eos: self.generation.ignore_eos,
            sampling,
            stop: &self.generation.stop,
            ..Request::new(&messages)
        };
        let estimate = self.device.estimate(&record, request.max_tokens)?;
        let answer = answer(&mut engine, &request, &estimate, false)?;
        let stages = stage::finish();
        if let Some(file) = trace_file {
            file.finish_with(&serde_json::to_vec(&trace::chrome(&stages))?)?;
        }
        let text = if self.json {
            serde_json::to_string(&AnswerReport::new(&answer, &stages))?
        } else {
            format!("{}\n{}", table(&stages), summary(&answer, &stages))
        };
        print_now(&format!("{text}\n"))
    }
}
