//! `edge-lmm chat`: several turns over one memory.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use edge_lmm::{Media, Request};
use edge_lmm_models::prompt::{Message, Role};

use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, PromptOptions, print_now, user_message,
};

/// Talks over several turns; pictures and the conversation so far are not computed again.
///
/// Reads one question per line. `/media FILE` shows a further picture, video or sound with the next
/// question, `/forget` starts over, `/quit` or the end of input leaves.
#[derive(Args)]
pub struct Cmd {
    /// The record, as edge-lmm-convert wrote it
    model: PathBuf,
    /// Instructions for the model [default: what its chat template says]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    files: MediaFiles,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    generation: GenerationOptions,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let sampling = self.generation.sampling()?;
        let options = self.media.options()?;
        let mut engine = self.device.load(&self.model)?;
        engine.set_parse_special(self.prompt_options.parse_special);
        let mut pending = self.files.open(&self.media)?;
        let mut media: Vec<Media> = Vec::new();
        let system = self.system.map(|text| Message::text(Role::System, text));
        let mut messages: Vec<Message> = system.clone().into_iter().collect();
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read standard input")?;
            let line = line.trim();
            match line.split_once(' ').unwrap_or((line, "")) {
                ("", _) => continue,
                ("/quit", _) => break,
                ("/forget", _) => {
                    engine.forget();
                    media.clear();
                    messages = system.clone().into_iter().collect();
                    continue;
                }
                ("/media", path) => {
                    match self.media.open(path.trim().as_ref()) {
                        Ok(medium) => pending.push(medium),
                        Err(error) => eprintln!("error: {error:#}"),
                    }
                    continue;
                }
                _ => {}
            }
            messages.push(user_message(&pending, line));
            media.append(&mut pending);
            let request = Request {
                messages: &messages,
                media: &media,
                options: options.clone(),
                max_tokens: self.generation.max_tokens,
                ignore_eos: self.generation.ignore_eos,
                sampling: sampling.clone(),
            };
            let mut written = Ok(());
            let answer = engine.answer(&request, |text| {
                if written.is_ok() {
                    written = print_now(text);
                }
            })?;
            written?;
            print_now("\n")?;
            messages.push(Message::text(Role::Assistant, answer.text));
        }
        Ok(())
    }
}
