//! `edge-lmm serve`: answers requests, one JSON object per line over a socket or standard input, or
//! over HTTP.

mod answering;
mod clients;
pub mod config;
#[cfg(feature = "http")]
pub mod http;
mod limits;
mod lines;
#[cfg(feature = "http")]
mod metrics;
mod queue;
mod service;
mod watchdog;

use std::fs;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::Event;
use edge_lmm::serve::{Limits, MAX_LINE, Question, Reply};
use edge_lmm::units::parse_bytes;
use sd_notify::NotifyState;

use self::answering::{Answering, break_if};
use self::clients::hung_up;
use self::lines::Patience;
use self::service::Service;
use super::cache::CacheOptions;
use super::costs;
use super::options::{
    DeviceOptions, FFMPEG, LogitsOptions, MediaArgs, PromptOptions, SpeculationOptions, print_now,
};
use crate::models;

/// Answers requests from other programs until it is terminated.
///
/// On a socket, a request is one line of JSON: {"id": 1, "prompt": "What is this?", "images": ["cat.jpg"]}; so
/// is the reply, with "text", "tokens", "finish_reason" and the timing, or "error". "stream": true
/// sends the text as it is generated. Images may be {"base64": ...} or data: URLs. Requests are
/// answered in sequence, or several at a time with --parallel; a request is canceled if its client
/// disconnects.
///
/// With --http, clients of OpenAI's interface are answered at http://ADDRESS/v1, and browsers get a
/// page.
/// Example: edge-lmm serve qwen2-vl-2b.bpk --http 127.0.0.1:8080
///
/// Options come from the command line, the environment (--max-tokens from
/// EDGE_LMM_SERVE_MAX_TOKENS) or a file (--config), in this order.
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(value_parser = models::argument())]
    model: PathBuf,
    /// Read options from a TOML file, such as max-tokens = 256
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen on a Unix socket [default: standard input and output, unless --http is given]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Permissions of the socket, in octal
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = parse_mode)]
    socket_mode: u32,
    #[cfg(feature = "http")]
    #[command(flatten)]
    http: http::HttpOptions,
    /// Maximum number of requests that wait; further ones are rejected. A single client can have
    /// half of the places
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_places)]
    queue: usize,
    /// Number of requests that are answered at the same time. Their answers are decoded together,
    /// which reads the weights once for all of them; each has a key-value cache of its own. Requests
    /// on standard input are answered in turn
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_parallel)]
    parallel: usize,
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
    #[command(flatten)]
    speculation: SpeculationOptions,
    /// Maximum number of conversations whose state is kept; the least recently used one is
    /// forgotten first [default: 4, or as many as --parallel]
    #[arg(long, value_name = "N", value_parser = parse_conversations)]
    conversations: Option<usize>,
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

/// Number of conversations that are kept by default, unless more requests are answered at a time.
const CONVERSATIONS: usize = 4;
/// Maximum number of conversations that are kept.
const MAX_CONVERSATIONS: usize = 256;

/// Maximum number of requests that wait.
const MAX_PLACES: usize = 1024;

/// Maximum number of requests that are answered at the same time.
const MAX_PARALLEL: usize = 64;

fn parse_places(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_PLACES) => Ok(count),
        _ => Err(format!("expected 1 to {MAX_PLACES} requests")),
    }
}

fn parse_parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_PARALLEL) => Ok(count),
        _ => Err(format!("expected 1 to {MAX_PARALLEL} requests")),
    }
}

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
        self.speculation.check()?;
        let engine = self.device.load(&self.model)?;
        self.speculation.load_draft(&self.device, &engine)?;
        let limits = Limits {
            max_tokens: self.max_tokens,
            files: !self.no_files,
            media: self.media.options(),
            frames: self.media.video(),
            ffmpeg: self.allow_ffmpeg.then(|| FFMPEG.into()),
            repetition_penalty: self.logits.repetition_penalty,
            ignore_generation_config: self.logits.ignore_generation_config,
            parse_special: self.prompt_options.parse_special,
            speculation: self.speculation.mode(engine.device()),
            #[cfg(feature = "http")]
            addresses: self.http.addresses(),
            #[cfg(not(feature = "http"))]
            addresses: None,
            // Each request reports why no prompt can be rendered.
            tool_syntax: engine.tool_syntax().unwrap_or_default(),
        };
        let estimator = self.device.request_estimator(&engine);
        self.cache.apply(&engine)?;
        costs::apply(
            self.media.first_token_budget(),
            self.cache.folder(),
            &engine,
        )?;
        let mut session = engine.session();
        let memory = usize::try_from(self.conversation_memory).unwrap_or(usize::MAX);
        let least = CONVERSATIONS.max(self.parallel);
        session.keep_conversations(self.conversations.unwrap_or(least), memory);
        let mut answering = Answering::new(session, estimator, self.parallel);
        let model = self.model.display();
        if !self.is_reachable() {
            eprintln!("{model} is ready and answers requests on standard input");
            return serve_standard_input(&limits, &mut answering);
        }
        let service = Service::new(limits, self.queue, self.parallel);
        if let Some(path) = &self.socket {
            let listener = listen(path, self.socket_mode)?;
            let patience = Patience {
                idle: self.idle_timeout,
                request: self.idle_timeout.min(REQUEST_TIME),
            };
            clients::accept(listener, service.clone(), patience);
            eprintln!("{model} is ready and listens on {}", path.display());
        }
        #[cfg(feature = "http")]
        if let Some(address) = self.http.start(&self.model, &engine, service.clone())? {
            eprintln!("{model} is ready and listens on http://{address}");
        }
        // Without systemd there is nothing to notify.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        answering.run(&service)
    }

    /// Returns `true` if clients connect over a socket or the network.
    fn is_reachable(&self) -> bool {
        #[cfg(feature = "http")]
        if self.http.is_on() {
            return true;
        }
        self.socket.is_some()
    }
}

fn serve_standard_input(limits: &Limits, answering: &mut Answering) -> anyhow::Result<()> {
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
        match question.and_then(|question| Ok((question.prepare(limits)?, question))) {
            Ok((request, Question { id, stream, .. })) => {
                let answer = answering.answer(limits, &request, |event| {
                    if let Event::Text(delta) = event
                        && stream
                    {
                        let (id, delta) = (id.clone(), delta.to_owned());
                        send(Reply::Delta { id, delta });
                    }
                    break_if(hung_up(&io::stdout()))
                });
                send(Reply::last(id, &answer));
            }
            Err(reply) => send(reply),
        }
        written?;
    }
    Ok(())
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
