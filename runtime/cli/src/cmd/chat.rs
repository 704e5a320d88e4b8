//! `edge-lmm chat`: a conversation of several turns.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use edge_lmm::chat::Line;
use edge_lmm::output::Output;
use edge_lmm::report::AnswerReport;
use edge_lmm::{AnySession, FinishReason, Media, Message, Request, Role, user_message};
use serde_json::json;

use crate::errors::message;

use super::answer::answer_until;
use super::cache::{CacheOptions, PromptCacheOptions, reserve};
use super::costs;
use super::memory::RequestCheck;
use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, PromptOptions, SpeculationOptions,
    print_now,
};
use super::signals::Interrupts;

const HELP: &str = "\
/media FILE  adds an image, video or audio file to the next question
/forget      starts a new conversation
/save-cache FILE
             writes the conversation's state, for --prompt-cache FILE
/help        lists the commands
/quit        exits, like the end of input
A question that starts with / is entered with //. Ctrl-C stops an answer.";

/// Holds a conversation of several turns; images and earlier turns are not computed again.
///
/// Reads one question per line. `/media FILE` adds an image, video or audio file to the next
/// question, `/forget` starts a new conversation, `/save-cache FILE` writes its state for
/// `--prompt-cache FILE`, `/help` lists the commands, `/quit` or the end of input exits. A question that cannot be answered is removed from the conversation. Ctrl-C stops
/// an answer; pressed twice, it exits.
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert
    model: PathBuf,
    /// System message [default: that of the chat template]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON object per turn instead of the text: text, reused_tokens, stages, ..., or
    /// error
    #[arg(long)]
    json: bool,
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
    device: DeviceOptions,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    prompt_cache: PromptCacheOptions,
}

/// The messages so far and their media.
#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    media: Vec<Media>,
    /// Media of the next question.
    pending: Vec<Media>,
}

impl Conversation {
    fn new(system: Option<&str>) -> Self {
        let system = system.map(|text| Message::text(Role::System, text));
        Self {
            messages: system.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        // Reports invalid options before the model is loaded.
        self.generation.sampling()?;
        self.media.check()?;
        self.speculation.check()?;
        let engine = self.device.load(&self.model)?;
        let check = self
            .device
            .request_check(&engine, self.generation.max_tokens);
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        self.speculation.load_draft(&self.device, &engine)?;
        let mut session = engine.session();
        let mut snapshot = self.prompt_cache.load(&mut session)?;
        let mut conversation = Conversation::new(self.system.as_deref());
        conversation.pending = self.files.open(&self.media)?;
        let interrupts = Interrupts::watch("interrupted; press Ctrl-C again or type /quit to exit");
        let mut input = std::io::stdin().lock();
        let prompts = input.is_terminal() && std::io::stderr().is_terminal();
        loop {
            if prompts {
                eprint!("> ");
            }
            let mut line = Vec::new();
            let read = input.read_until(b'\n', &mut line);
            if read.context("cannot read standard input")? == 0 {
                return Ok(());
            }
            interrupts.reset();
            match Line::parse(&line) {
                Line::NotText => self.print_error("the question is not UTF-8 text")?,
                Line::Nothing => {}
                Line::Quit => return Ok(()),
                Line::Help => eprintln!("{HELP}"),
                Line::Unknown(command) => {
                    self.print_error(&format!(
                        "unknown command {command:?}; /help lists the commands"
                    ))?;
                }
                Line::Forget => {
                    session.forget();
                    conversation = Conversation::new(self.system.as_deref());
                }
                Line::SaveCache(path) => match save(&session, path.as_ref()) {
                    Ok(()) => eprintln!("the conversation's state is in {path}"),
                    Err(error) => self.print_error(&message(&error))?,
                },
                Line::Media(path) => match self.media.open(path.as_ref()) {
                    Ok(medium) => conversation.pending.push(medium),
                    Err(error) => self.print_error(&message(&error.into()))?,
                },
                Line::Question(question) => {
                    self.turn(
                        &mut session,
                        &check,
                        &mut conversation,
                        question,
                        &interrupts,
                        &mut snapshot,
                    )?;
                }
            }
        }
    }

    /// Answers a question. If that fails, removes it and its media from the conversation.
    fn turn(
        &self,
        session: &mut AnySession,
        check: &RequestCheck,
        conversation: &mut Conversation,
        question: &str,
        interrupts: &Interrupts,
        snapshot: &mut Option<Output>,
    ) -> anyhow::Result<()> {
        let Conversation {
            messages,
            media,
            pending,
        } = conversation;
        let before = (messages.len(), media.len());
        messages.push(user_message(pending, question));
        media.append(pending);
        let request = Request {
            media,
            options: self.media.options(),
            parse_special: self.prompt_options.parse_special,
            speculation: self.speculation.mode(),
            timing: self.json,
            ..self.generation.request(messages)?
        };
        let pressed = || interrupts.pressed();
        let answer = answer_until(session, &request, check, !self.json, pressed);
        interrupts.reset();
        match answer {
            Ok(answer) => {
                if self.json {
                    let report = AnswerReport::new(&answer, &answer.timing);
                    print_now(&format!("{}\n", serde_json::to_string(&report)?))?;
                } else {
                    print_now("\n")?;
                }
                if answer.finish_reason == FinishReason::Context {
                    eprintln!(
                        "note: the answer ends because the context is full; /forget starts \
                         a new conversation"
                    );
                }
                messages.push(Message::text(Role::Assistant, answer.text));
                if let Some(output) = snapshot.take()
                    && let Err(error) = session.save_snapshot(output, answer.prompt_tokens)
                {
                    self.print_error(&message(&error.into()))?;
                }
            }
            Err(error) => {
                messages.truncate(before.0);
                media.truncate(before.1);
                self.print_error(&format!(
                    "{}; the question was removed, /forget starts a new conversation",
                    message(&error)
                ))?;
            }
        }
        Ok(())
    }

    fn print_error(&self, error: &str) -> anyhow::Result<()> {
        eprintln!("error: {error}");
        match self.json {
            true => print_now(&format!("{}\n", json!({ "error": error }))),
            false => Ok(()),
        }
    }
}

/// Writes the state of a conversation.
fn save(session: &AnySession, path: &Path) -> anyhow::Result<()> {
    let output = reserve(session, path)?;
    Ok(session.save_snapshot(output, usize::MAX)?)
}
