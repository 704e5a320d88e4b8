//! `edge-lmm serve`: answers requests over a socket or standard input, one JSON object per line.

mod clients;
mod limits;
mod lines;

use std::fs;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::RequestEstimator;
use edge_lmm::serve::{Limits, MAX_LINE, Prepared, Question, Reply};
use edge_lmm::{AnySession, Event};
use sd_notify::NotifyState;

use self::clients::{Job, hung_up};
use self::lines::Patience;
use super::cache::{CacheOptions, parse_bytes};
use super::costs;
use super::options::{DeviceOptions, FFMPEG, LogitsOptions, MediaArgs, PromptOptions, print_now};

/// Answers requests from other programs until it is terminated.
///
/// A request is one line of JSON: {"id": 1, "prompt": "What is this?", "images": ["cat.jpg"]}; so
/// is the reply, with "text", "tokens", "finish_reason" and the timing, or "error". "stream": true
/// sends the text as it is generated. Images may be {"base64": ...} or data: URLs. Requests are
/// answered in sequence; a request is canceled if its client disconnects.
/// Example: edge-lmm serve qwen2-vl-2b.bpk --socket /run/edge-lmm/qwen.sock
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert
    model: PathBuf,
    /// Listen on a Unix socket [default: standard input and output]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Permissions of the socket, in octal
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = parse_mode)]
    socket_mode: u32,
    /// Maximum tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// Disconnect a client that sends no complete request for this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    idle_timeout: Duration,
    /// Reject requests that name files; images must be sent as base64
    #[arg(long)]
    no_files: bool,
    /// Let requests name videos that the program ffmpeg has to convert; by default, no request
    /// starts a program
    #[arg(long, conflicts_with = "no_files")]
    allow_ffmpeg: bool,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    logits: LogitsOptions,
    /// Maximum number of conversations whose state is kept; the least recently used one is
    /// forgotten first
    #[arg(long, value_name = "N", default_value = "4", value_parser = parse_conversations)]
    conversations: usize,
    /// Maximum memory of these states together; the latest one is always kept
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    conversation_memory: u64,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    cache: CacheOptions,
}

/// Time limit for receiving a complete request.
const REQUEST_TIME: Duration = Duration::from_secs(60);

/// Maximum number of conversations that are kept.
const MAX_CONVERSATIONS: usize = 256;

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected up to three octal digits, such as 660".to_owned()),
    }
}

fn parse_conversations(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_CONVERSATIONS) => Ok(count),
        _ => Err(format!("expected 1 to {MAX_CONVERSATIONS} conversations")),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected 1 to 86400 seconds".to_owned()),
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        self.media.check()?;
        let limits = Limits {
            max_tokens: self.max_tokens,
            files: !self.no_files,
            media: self.media.options(),
            frames: self.media.video(),
            ffmpeg: self.allow_ffmpeg.then(|| FFMPEG.into()),
            repetition_penalty: self.logits.repetition_penalty,
            ignore_generation_config: self.logits.ignore_generation_config,
            parse_special: self.prompt_options.parse_special,
        };
        let engine = self.device.load(&self.model)?;
        let estimator = self.device.request_estimator(&engine);
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        let mut session = engine.session();
        let memory = usize::try_from(self.conversation_memory).unwrap_or(usize::MAX);
        session.keep_conversations(self.conversations, memory);
        let mut answering = Answering {
            session,
            limits,
            estimator,
        };
        let model = self.model.display();
        match &self.socket {
            None => {
                eprintln!("{model} is ready and answers requests on standard input");
                serve_standard_input(&mut answering)
            }
            Some(path) => {
                let listener = listen(path, self.socket_mode)?;
                let patience = Patience {
                    idle: self.idle_timeout,
                    request: self.idle_timeout.min(REQUEST_TIME),
                };
                let jobs = clients::accept(listener, answering.limits.clone(), patience);
                // Without systemd there is nothing to notify.
                let _ = sd_notify::notify(&[NotifyState::Ready]);
                eprintln!("{model} is ready and listens on {}", path.display());
                answer_jobs(&mut answering, &jobs)
            }
        }
    }
}

/// The model, the limits and the memory check that answer questions.
struct Answering {
    session: AnySession,
    limits: Limits,
    estimator: Option<RequestEstimator>,
}

impl Answering {
    fn answer(
        &mut self,
        request: &Prepared,
        reply: impl FnMut(Reply),
        watch: impl FnMut(&Event<'_>) -> ControlFlow<()>,
    ) {
        let estimator = self.estimator.as_ref();
        request.answer(&mut self.session, &self.limits, estimator, reply, watch);
    }
}

fn serve_standard_input(answering: &mut Answering) -> anyhow::Result<()> {
    let mut input = io::stdin().lock();
    while let Some(line) = read_line(&mut input)? {
        let mut written = Ok(());
        let mut send = |reply: Reply| {
            if written.is_ok() {
                written = print_now(&format!("{}\n", reply.line()));
            }
        };
        let question = match line {
            Line::Request(line) => Question::parse(&line),
            Line::TooLong => Err(Reply::error(format!(
                "the request is longer than {MAX_LINE} bytes"
            ))),
        };
        match question.and_then(|question| question.prepare(&answering.limits)) {
            Ok(request) => {
                answering.answer(&request, send, |_| break_if(hung_up(&io::stdout())));
            }
            Err(reply) => send(reply),
        }
        written?;
    }
    Ok(())
}

fn break_if(condition: bool) -> ControlFlow<()> {
    match condition {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Answers the jobs of all clients, in sequence.
fn answer_jobs(answering: &mut Answering, jobs: &Receiver<Job>) -> anyhow::Result<()> {
    let mut watchdog = Watchdog::new();
    loop {
        let job = match jobs.recv_timeout(watchdog.interval) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                watchdog.notify();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the socket was closed"),
        };
        if hung_up(&*job.client) {
            continue;
        }
        let send = |reply| job.reply(reply);
        answering.answer(&job.request, send, |_: &Event<'_>| {
            watchdog.notify();
            break_if(hung_up(&*job.client))
        });
    }
}

/// A notifier for systemd's watchdog (`WatchdogSec=`), active while layers and tokens are
/// completed.
struct Watchdog {
    interval: Duration,
    asked: bool,
    last: Instant,
}

impl Watchdog {
    fn new() -> Self {
        let asked = sd_notify::watchdog_enabled();
        Self {
            // Twice per period of systemd, as its documentation recommends.
            interval: asked.map_or(Duration::from_secs(60), |time| time / 2),
            asked: asked.is_some(),
            last: Instant::now(),
        }
    }

    fn notify(&mut self) {
        if self.asked && self.last.elapsed() >= self.interval / 2 {
            // A failure cannot be reported to anyone else.
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            self.last = Instant::now();
        }
    }
}

/// Binds the socket; one left behind by a terminated server is replaced.
fn listen(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            bail!("{} is in use by a running server", path.display());
        }
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    Ok(listener)
}

enum Line {
    Request(Vec<u8>),
    TooLong,
}

/// Reads the next line that is not empty; a line that is too long is skipped without keeping it.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    loop {
        let mut line = Vec::new();
        let n = input
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(None);
        }
        if n > MAX_LINE && !line.ends_with(b"\n") {
            input.skip_until(b'\n')?;
            return Ok(Some(Line::TooLong));
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Some(Line::Request(line)));
        }
    }
}
