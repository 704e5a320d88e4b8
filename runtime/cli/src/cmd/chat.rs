//! `edge-lmm chat`: a conversation over several turns.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use edge_lmm::chat::Line;
use edge_lmm::report::AnswerReport;
use edge_lmm::{AnySession, FinishReason, Media, Request, one_line, user_message};
use edge_lmm_models::prompt::{Message, Role};
use serde_json::json;

use super::answer::answer_until;
use super::memory::RequestCheck;
use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, PromptOptions, print_now,
};
use super::signals::Interrupts;

const HELP: &str = "\
/media FILE  shows an image, a video or a sound with the next question
/forget      starts a new conversation
/help        shows this list
/quit        leaves, as the end of input does
A line that begins with // is a question that begins with /. Ctrl-C stops an answer.";

/// Talks over several turns; images and the conversation so far are not computed again.
///
/// Reads one question per line. `/media FILE` shows a further image, video or sound with the next
/// question, `/forget` starts a new conversation, `/help` lists the commands, `/quit` or the end of
/// input leaves. A question that cannot be answered is taken back, and the conversation goes on.
/// Ctrl-C stops an answer; pressed twice, it leaves.
#[derive(Args)]
pub struct Cmd {
    /// The record, as edge-lmm-convert wrote it
    model: PathBuf,
    /// Instructions for the model [default: what its chat template says]
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
    device: DeviceOptions,
}

/// The messages so far with the media that they show.
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
        // Wrong options end the program before the model is loaded.
        self.generation.sampling()?;
        let engine = self.device.load(&self.model)?;
        let check = self
            .device
            .request_check(&engine, self.generation.max_tokens);
        let mut session = engine.session();
        let mut conversation = Conversation::new(self.system.as_deref());
        conversation.pending = self.files.open(&self.media)?;
        let interrupts = Interrupts::watch();
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
                Line::Media(path) => match self.media.open(path.as_ref()) {
                    Ok(medium) => conversation.pending.push(medium),
                    Err(error) => self.print_error(&one_line(&error))?,
                },
                Line::Question(question) => {
                    self.turn(
                        &mut session,
                        &check,
                        &mut conversation,
                        question,
                        &interrupts,
                    )?;
                }
            }
        }
    }

    /// Answers a question, or takes it back with its media.
    fn turn(
        &self,
        session: &mut AnySession,
        check: &RequestCheck,
        conversation: &mut Conversation,
        question: &str,
        interrupts: &Interrupts,
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
            max_tokens: self.generation.max_tokens,
            ignore_eos: self.generation.ignore_eos,
            sampling: self.generation.sampling()?,
            parse_special: self.prompt_options.parse_special,
            timing: self.json,
            ..Request::new(messages)
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
                        "note: the answer ends where the model's context is full; /forget starts \
                         a new conversation"
                    );
                }
                messages.push(Message::text(Role::Assistant, answer.text));
            }
            Err(error) => {
                messages.truncate(before.0);
                media.truncate(before.1);
                self.print_error(&format!(
                    "{}; the question is taken back, /forget starts a new conversation",
                    one_line(error.as_ref())
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
