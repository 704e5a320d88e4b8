//! `edge-lmm chat`: a conversation of several turns.

mod conversation;
mod editor;
mod input;

use std::path::{Path, PathBuf};

use clap::Args;
use edge_lmm::chat::{COMMANDS, Droppable, Line};
use edge_lmm::media::MediaError;
use edge_lmm::memory::MemoryError;
use edge_lmm::output::Output;
use edge_lmm::report::AnswerReport;
use edge_lmm::{
    Answer, AnySession, Constraint, EngineError, FinishReason, Media, MediaKind, Request,
};
use serde_json::json;

use crate::errors::message;
use crate::models;
use crate::summary::summary;

use self::conversation::{Conversation, Turn};
use self::input::Input;
use super::answer::answer_until;
use super::cache::{CacheOptions, PromptCacheOptions, reserve};
use super::constraint::ConstraintOptions;
use super::costs;
use super::memory::RequestCheck;
use super::options::{
    DeviceOptions, GenerationOptions, MediaArgs, MediaFiles, PromptOptions, SpeculationOptions,
    print_now,
};
use super::signals::Interrupts;

/// Holds a conversation of several turns; images and earlier turns are not computed again.
///
/// On a terminal, lines are edited, with a history; Alt-Enter or a backslash at the end of a line
/// continues the question on the next line, and Tab completes commands and paths. Otherwise each line
/// of standard input is a question. `/help` lists the commands, `/quit` or the end of input exits. A
/// question that cannot be answered is removed from the conversation. Ctrl-C stops an answer; pressed
/// twice, it exits.
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(value_parser = models::argument())]
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
    constraint: ConstraintOptions,
    /// Form of the answers, read from these options.
    #[arg(skip)]
    form: Option<Constraint>,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    prompt_cache: PromptCacheOptions,
}

impl Cmd {
    pub fn run(mut self) -> anyhow::Result<()> {
        // Reports invalid options before the model is loaded.
        self.generation.sampling()?;
        self.media.check()?;
        self.speculation.check()?;
        self.form = self.constraint.read()?;
        let engine = self.device.load(&self.model)?;
        let check = self.device.request_check(&engine);
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        self.speculation.load_draft(&self.device, &engine)?;
        let mut session = engine.session();
        let snapshot = self.prompt_cache.load(&mut session)?;
        let mut conversation = Conversation::new(self.system.as_deref());
        conversation.pending = self.files.open(&self.media)?;
        let mut chat = Chat {
            input: Input::open(!self.json)?,
            interrupts: Interrupts::watch("interrupted; press Ctrl-C again or type /quit to exit"),
            cmd: self,
            session,
            check,
            conversation,
            snapshot,
            stats: None,
            retries: 0,
        };
        while let Some(line) = chat.input.line()? {
            chat.interrupts.reset();
            match Line::parse(&line) {
                Line::Quit => break,
                line => chat.line(line)?,
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

    /// Reads a medium of any kind, or of the given one.
    fn open(&self, kind: Option<MediaKind>, path: &Path) -> Result<Media, MediaError> {
        match kind {
            Some(kind) => self.media.open_as(path, kind),
            None => self.media.open(path),
        }
    }
}

/// A conversation and its session.
struct Chat {
    cmd: Cmd,
    input: Input,
    interrupts: Interrupts,
    session: AnySession,
    check: RequestCheck,
    conversation: Conversation,
    /// The file for the state after the first prompt.
    snapshot: Option<Output>,
    /// Tokens and times of the last answer.
    stats: Option<String>,
    /// Added to the seed, so that the same question has another answer.
    retries: u64,
}

impl Chat {
    /// Obeys a command or answers a question.
    fn line(&mut self, line: Line<'_>) -> anyhow::Result<()> {
        let done = match line {
            Line::Nothing | Line::Quit => Ok(()),
            Line::NotText => Err("the question is not UTF-8 text".to_owned()),
            Line::Unknown(command) => Err(format!(
                "unknown command {command:?}; /help lists the commands"
            )),
            Line::Help => {
                eprintln!("{}", help());
                Ok(())
            }
            Line::Forget => {
                self.session.forget();
                self.conversation = Conversation::new(self.cmd.system.as_deref());
                Ok(())
            }
            Line::Undo => self.undo(),
            Line::Retry => return self.retry(),
            Line::Drop(part) => self.drop_part(part),
            Line::Stats => match &self.stats {
                Some(stats) => {
                    eprintln!("{stats}");
                    Ok(())
                }
                None => Err("there is no answer yet".to_owned()),
            },
            Line::Save(path) => self.save(path.as_ref()).map_err(|error| message(&error)),
            Line::SaveCache(path) => self
                .save_cache(path.as_ref())
                .map_err(|error| message(&error)),
            Line::Media(kind, path) => match self.cmd.open(kind, path.as_ref()) {
                Ok(medium) => {
                    self.conversation.pending.push(medium);
                    Ok(())
                }
                Err(error) => Err(message(&error.into())),
            },
            Line::Question(question) => {
                self.retries = 0;
                let media = std::mem::take(&mut self.conversation.pending);
                return self.ask(question.to_owned(), media).map(drop);
            }
        };
        done.or_else(|error| self.cmd.print_error(&error))
    }

    fn undo(&mut self) -> Result<(), String> {
        let turn = self.conversation.turns.pop();
        let turn = turn.ok_or("there is no question to remove")?;
        eprintln!("removed the question {:?}", shortened(&turn.question));
        Ok(())
    }

    /// Answers the last question again. If that fails, its former answer stays.
    fn retry(&mut self) -> anyhow::Result<()> {
        let Some(turn) = self.conversation.turns.pop() else {
            return self.cmd.print_error("there is no question to answer again");
        };
        self.retries += 1;
        let place = self.conversation.turns.len();
        if !self.ask(turn.question.clone(), turn.media.clone())? {
            // Turns may have been dropped to make room.
            let place = place.min(self.conversation.turns.len());
            self.conversation.turns.insert(place, turn);
        }
        Ok(())
    }

    fn drop_part(&mut self, part: Droppable) -> Result<(), String> {
        let count = self.conversation.turns.len();
        let dropped = self.conversation.drop_part(part, count);
        eprintln!("{}", dropped.ok_or("there is nothing to remove")?);
        Ok(())
    }

    /// Writes the conversation as text.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let output = Output::create(path, false)?;
        output.finish_with(self.conversation.transcript().as_bytes())?;
        eprintln!("the conversation is in {}", path.display());
        Ok(())
    }

    /// Writes the state of the conversation.
    fn save_cache(&self, path: &Path) -> anyhow::Result<()> {
        let output = reserve(&self.session, path)?;
        self.session.save_snapshot(output, usize::MAX)?;
        eprintln!("the conversation's state is in {}", path.display());
        Ok(())
    }

    /// Answers a question. If that fails, removes it and its media from the conversation and returns
    /// `false`.
    fn ask(&mut self, question: String, media: Vec<Media>) -> anyhow::Result<bool> {
        self.conversation.turns.push(Turn {
            question,
            media,
            answer: String::new(),
        });
        loop {
            let error = match self.answer() {
                Ok(answer) => return self.finish(answer).map(|()| true),
                Err(error) => error,
            };
            if self.make_room(&error)? {
                continue;
            }
            self.conversation.turns.pop();
            let hint = match is_overflow(&error) && !self.conversation.turns.is_empty() {
                true => "/drop turn and /drop media make room, /clear starts a new conversation",
                false => "/clear starts a new conversation",
            };
            let error = message(&error);
            self.cmd
                .print_error(&format!("{error}; the question was removed, {hint}"))?;
            return Ok(false);
        }
    }

    /// Answers the last question.
    fn answer(&mut self) -> anyhow::Result<Answer> {
        let (messages, media) = self.conversation.messages();
        let mut request = Request {
            media: &media,
            options: self.cmd.media.options(),
            parse_special: self.cmd.prompt_options.parse_special,
            speculation: self.cmd.speculation.mode(self.session.device()),
            timing: true,
            constraint: self.cmd.form.as_ref(),
            ..self.cmd.generation.request(&messages)?
        };
        request.sampling.seed = request.sampling.seed.wrapping_add(self.retries);
        let pressed = || self.interrupts.pressed();
        let stream = !self.cmd.json;
        let answer = answer_until(&mut self.session, &request, &self.check, stream, pressed);
        self.interrupts.reset();
        answer
    }

    /// Adds an answer to the conversation.
    fn finish(&mut self, answer: Answer) -> anyhow::Result<()> {
        if self.cmd.json {
            let report = AnswerReport::new(&answer, &answer.timing);
            print_now(&format!("{}\n", serde_json::to_string(&report)?))?;
        } else {
            print_now("\n")?;
        }
        if answer.finish_reason == FinishReason::Context {
            eprintln!(
                "note: the answer ends because the context is full; /drop turn removes the oldest \
                 turn, /drop media the media, /clear starts a new conversation"
            );
        }
        self.stats = Some(format!(
            "{}\n{}",
            answer.timing,
            summary(&answer, &answer.timing)
        ));
        if let Some(turn) = self.conversation.turns.last_mut() {
            turn.answer = answer.text;
        }
        if let Some(output) = self.snapshot.take()
            && let Err(error) = self.session.save_snapshot(output, answer.prompt_tokens)
        {
            self.cmd.print_error(&message(&error.into()))?;
        }
        Ok(())
    }

    /// Offers to remove earlier parts of a conversation that is too long. Returns `true` if some were
    /// removed.
    fn make_room(&mut self, error: &anyhow::Error) -> anyhow::Result<bool> {
        // The last turn is the question itself.
        let earlier = self.conversation.turns.len() - 1;
        if !is_overflow(error) || earlier == 0 {
            return Ok(false);
        }
        let question = format!(
            "{}\nremove the oldest (t)urn, the (m)edia of earlier turns, or neither (Enter)? ",
            message(error)
        );
        let part = match self.input.choice(&question)?.as_deref() {
            Some("t" | "turn") => Droppable::Turn,
            Some("m" | "media") => Droppable::Media,
            _ => return Ok(false),
        };
        let dropped = self.conversation.drop_part(part, earlier);
        eprintln!(
            "{}",
            dropped.as_deref().unwrap_or("there is nothing to remove")
        );
        Ok(dropped.is_some())
    }
}

/// Returns `true` if the conversation is longer than the model's context or too large for memory.
fn is_overflow(error: &anyhow::Error) -> bool {
    let is_long = matches!(
        error.downcast_ref(),
        Some(
            EngineError::TooLong { .. } | EngineError::TextTooLong { .. } | EngineError::Memory(_)
        )
    );
    is_long || error.is::<MemoryError>()
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Lists the commands.
fn help() -> String {
    let commands = COMMANDS.iter().map(|(command, argument, effect)| {
        let usage = format!("{command} {argument}");
        format!("{usage:18} {effect}\n")
    });
    let commands: String = commands.collect();
    format!(
        "{commands}A question that starts with / is entered with //. Ctrl-C stops an answer. On a \
         terminal, Alt-Enter or a backslash at the end of a line adds a line to the question."
    )
}
