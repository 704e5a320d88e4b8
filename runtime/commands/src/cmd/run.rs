//! `edge-lmm run`: one answer.

use std::path::PathBuf;

use clap::Args;
use edge_lmm::dump::probe;
use edge_lmm::output::Output;
use edge_lmm::report::AnswerReport;
use edge_lmm::{Message, Recording, Request, Role, Speculation, dump, user_message};

use crate::models;
use crate::summary::summary;

use super::answer::answer;
use super::cache::{CacheOptions, PromptCacheOptions};
use super::constraint::ConstraintOptions;
use super::costs;
use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, PromptOptions, SpeculationOptions,
    print_now,
};

/// Answers one question, optionally about images, a video or audio.
///
/// Example: edge-lmm run qwen2-vl-2b.bpk --image cat.jpg --prompt "What is this?" --timing
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(value_parser = models::argument())]
    model: PathBuf,
    /// Question to answer
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// System message [default: that of the chat template]
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
    speculation: SpeculationOptions,
    #[command(flatten)]
    constraint: ConstraintOptions,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    prompt_cache: PromptCacheOptions,
    /// Print the time of every stage to standard error
    #[arg(long)]
    timing: bool,
    /// Print one JSON object instead of the text: text, tokens, stages, ...
    #[arg(long)]
    json: bool,
    /// Write the intermediate tensors of the prompt to a file
    #[arg(long, value_name = "FILE.safetensors")]
    dump_stages: Option<PathBuf>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        // Wrong options end the program before the model is loaded.
        self.generation.sampling()?;
        self.media.check()?;
        self.speculation.check()?;
        let constraint = self.constraint.read()?;
        let inputs = self.files.paths().map(|(path, _)| path);
        let inputs = inputs.chain([self.model.as_path()]);
        let dump = self.dump_stages.as_deref();
        let dump = dump.map(|path| Output::replace(path, inputs)).transpose()?;
        let timed = self.timing || self.json;
        let mut recording = timed.then(|| self.device.recording()).transpose()?;
        let recorded = recording.as_mut().map(Recording::enter);
        let engine = self.device.load(&self.model)?;
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        self.speculation.load_draft(&self.device, &engine)?;
        let mut session = engine.session();
        let snapshot = self.prompt_cache.load(&mut session)?;
        let media = self.files.decode(&self.media)?;
        let system = self.system.map(|text| Message::text(Role::System, text));
        let user = user_message(&media, &self.prompt);
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let request = Request {
            media: &media,
            options: self.media.options(),
            parse_special: self.prompt_options.parse_special,
            speculation: match dump {
                // The tensors are those of single steps.
                Some(_) => Speculation::Off,
                None => self.speculation.mode(session.device()),
            },
            constraint: constraint.as_ref(),
            ..self.generation.request(&messages)?
        };
        if dump.is_some() {
            probe::start();
        }
        let check = self.device.request_check(&engine);
        let answer = answer(&mut session, &request, &check, !self.json)?;
        if let Some(snapshot) = snapshot {
            session.save_snapshot(snapshot, answer.prompt_tokens)?;
        }
        if let Some(dump) = dump {
            dump::write(dump, &probe::finish())?;
        }
        drop(recorded);
        let timing = recording.map(Recording::finish).unwrap_or_default();
        if self.json {
            let report = AnswerReport::new(&answer, &timing);
            print_now(&format!("{}\n", serde_json::to_string(&report)?))?;
        } else {
            print_now("\n")?;
        }
        if self.timing {
            eprintln!("{}\n{}", timing, summary(&answer, &timing));
        }
        Ok(())
    }
}
