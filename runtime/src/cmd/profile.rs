//! `edge-lmm profile`: time and memory of every module.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use edge_lmm::report::{AnswerReport, table};
use edge_lmm::{Request, trace};
use edge_lmm_ops::stage;

use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, print_now, user_message,
};

/// Answers one question and prints where the time went, module by module.
///
/// The table takes the layers of a stack together; --json has every layer, --chrome-trace every
/// call (open it in https://ui.perfetto.dev or chrome://tracing).
#[derive(Args)]
pub struct Cmd {
    /// The record, as edge-lmm-convert wrote it
    model: PathBuf,
    /// The question
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
        self.device.record_stages()?;
        let mut engine = self.device.load(&self.model)?;
        let media = self.files.open(&self.media)?;
        let messages = [user_message(&media, &self.prompt)];
        let answer = engine.answer(
            &Request {
                messages: &messages,
                media: &media,
                options: self.media.options()?,
                max_tokens: self.generation.max_tokens,
                ignore_eos: self.generation.ignore_eos,
                sampling: self.generation.sampling()?,
            },
            |_| {},
        )?;
        let stages = stage::finish();
        if let Some(path) = &self.chrome_trace {
            write_trace(path, &trace::chrome(&stages))?;
        }
        let text = if self.json {
            serde_json::to_string(&AnswerReport::new(&answer, &stages))?
        } else {
            table(&stages)
        };
        print_now(&format!("{text}\n"))
    }
}

fn write_trace(path: &Path, trace: &serde_json::Value) -> anyhow::Result<()> {
    std::fs::write(path, trace.to_string())
        .with_context(|| format!("cannot write {}", path.display()))
}
