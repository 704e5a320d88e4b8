//! `edge-lmm serve`: answers requests, one JSON object per line, over a socket or standard input.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::AnyEngine;
use edge_lmm::serve::{Limits, MAX_LINE, Reply, answer};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;

use super::options::{DeviceOptions, LogitsOptions, MediaArgs, PromptOptions};

/// A client that takes no reply for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most clients at a time; each may have one request waiting.
const MAX_CLIENTS: usize = 32;

/// Answers requests from other programs until it is ended.
///
/// A request is one line of JSON: {"id": 1, "prompt": "What is this?", "images": ["cat.jpg"]}; the
/// reply is one, too, with "text", "tokens", "finish_reason" and the timing, or "error".
/// "stream": true sends the text as it comes. Images may be {"base64": ...} or data: URLs. Requests
/// are answered one after the other; one whose client hangs up is cancelled.
/// Example: edge-lmm serve qwen2-vl-2b.bpk --socket /run/edge-lmm/qwen.sock
#[derive(Args)]
pub struct Cmd {
    /// The record, as edge-lmm-convert wrote it
    model: PathBuf,
    /// Listen on a Unix socket [default: standard input and output]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Who may connect: permissions of the socket, in octal
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = parse_mode)]
    socket_mode: u32,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// Refuse requests that name files; images then come as base64
    #[arg(long)]
    no_files: bool,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    logits: LogitsOptions,
    #[command(flatten)]
    device: DeviceOptions,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected up to three octal digits, such as 660".to_owned()),
    }
}

/// A request on its way to the engine.
struct Job {
    line: Vec<u8>,
    replies: Sender<Reply>,
    client: Arc<UnixStream>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let limits = Limits {
            max_tokens: self.max_tokens,
            files: !self.no_files,
            media: self.media.options(),
            frames: self.media.frames(),
            repetition_penalty: self.logits.repetition_penalty,
            ignore_generation_config: self.logits.ignore_generation_config,
        };
        let mut engine = self.device.load(&self.model)?;
        engine.set_parse_special(self.prompt_options.parse_special);
        let model = self.model.display();
        match &self.socket {
            None => {
                eprintln!("{model} is ready and answers requests on standard input");
                serve_standard_input(&mut engine, &limits)
            }
            Some(path) => {
                let listener = listen(path, self.socket_mode)?;
                notify_ready()?;
                eprintln!("{model} is ready and listens on {}", path.display());
                serve_socket(&mut engine, &limits, listener)
            }
        }
    }
}

fn serve_standard_input(engine: &mut AnyEngine, limits: &Limits) -> anyhow::Result<()> {
    let mut input = io::stdin().lock();
    while let Some(line) = read_line(&mut input)? {
        let mut written = Ok(());
        let mut send = |reply: Reply| {
            if written.is_ok() {
                written = super::options::print_now(&format!("{}\n", reply.line()));
            }
        };
        match line {
            Line::Request(line) => {
                answer(engine, &line, limits, send, || hung_up(&io::stdout()));
            }
            Line::TooLong => send(too_long()),
        }
        written?;
    }
    Ok(())
}

/// Binds the socket; a left-over of a server that is gone is replaced.
fn listen(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            bail!("{} belongs to a server that is running", path.display());
        }
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    Ok(listener)
}

/// Tells systemd that requests can come (`sd_notify(3)`), if it asks.
fn notify_ready() -> anyhow::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    let address = address.to_string_lossy();
    match address.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(b"READY=1", &address)?;
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => bail!("NOTIFY_SOCKET names an abstract socket, which this system lacks"),
        None => {
            socket
                .send_to(b"READY=1", address.as_ref())
                .context("cannot notify systemd")?;
        }
    }
    Ok(())
}

/// One thread per client reads requests and writes replies; this thread, where the model is,
/// answers.
fn serve_socket(
    engine: &mut AnyEngine,
    limits: &Limits,
    listener: UnixListener,
) -> anyhow::Result<()> {
    let (jobs, queue): (SyncSender<Job>, Receiver<Job>) = sync_channel(MAX_CLIENTS);
    thread::spawn(move || accept(&listener, &jobs));
    for job in queue {
        let send = |reply| {
            // A client that is gone gets no reply.
            let _ = job.replies.send(reply);
        };
        answer(engine, &job.line, limits, send, || hung_up(&*job.client));
    }
    bail!("the socket was closed")
}

fn accept(listener: &UnixListener, jobs: &SyncSender<Job>) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("a client could not connect: {error}");
                // Out of file descriptors, for one: others must end first.
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            let busy = error_reply(format!("{MAX_CLIENTS} clients are connected; try later"));
            let _ = stream.write_all(format!("{}\n", busy.line()).as_bytes());
            continue;
        }
        let (jobs, clients) = (jobs.clone(), clients.clone());
        thread::spawn(move || {
            if let Err(error) = serve_client(stream, &jobs) {
                log::debug!("a client is gone: {error}");
            }
            clients.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Whether nobody reads what is written any more. A client that has only finished sending still
/// reads.
fn hung_up(output: &impl AsFd) -> bool {
    let mut poll = [PollFd::new(output, PollFlags::empty())];
    let now = Timespec::default();
    rustix::event::poll(&mut poll, Some(&now)).is_ok()
        && poll[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}

fn serve_client(stream: UnixStream, jobs: &SyncSender<Job>) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let client = Arc::new(stream.try_clone()?);
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    while let Some(line) = read_line(&mut input)? {
        let (replies, answers) = channel();
        match line {
            Line::Request(line) => {
                let job = Job {
                    line,
                    replies,
                    client: client.clone(),
                };
                jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
            Line::TooLong => {
                let _ = replies.send(too_long());
                drop(replies);
            }
        }
        // Ends when the engine drops its end, after the last reply.
        for reply in answers {
            output.write_all(format!("{}\n", reply.line()).as_bytes())?;
        }
    }
    Ok(())
}

enum Line {
    Request(Vec<u8>),
    TooLong,
}

/// The next line that is not empty; what is too long is read past without keeping it.
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

fn too_long() -> Reply {
    error_reply(format!("the request is longer than {MAX_LINE} bytes"))
}

fn error_reply(error: String) -> Reply {
    Reply::Error {
        id: Value::Null,
        error,
    }
}
