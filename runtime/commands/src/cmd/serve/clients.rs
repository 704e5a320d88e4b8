//! Clients of the socket. One thread per client reads requests, decodes their media and writes
//! replies.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use edge_lmm::serve::{MAX_LINE, Question, Reply};
use edge_lmm::{Answer, EngineError, Event};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;

use super::lines::{Line, Lines, Patience};
use super::queue::Owner;
use super::service::{Client, REQUEST_BYTES, Service};

/// Maximum number of clients; each may have one request waiting.
pub const MAX_CLIENTS: usize = 32;
/// Maximum replies queued for a slow client, which is then disconnected.
const WAITING_REPLIES: usize = 1024;
/// Time after which a client that accepts no reply is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle time after which a client without a request may be replaced by a new one when all places
/// are taken.
const EVICTION_AGE: Duration = Duration::from_millis(100);
/// Maximum rejected clients that are notified at the same time; further ones are dropped.
const MAX_REFUSALS: usize = 64;

/// The client of a request that is being answered.
struct Asking {
    id: Value,
    is_streamed: bool,
    stream: Arc<UnixStream>,
    replies: SyncSender<Reply>,
    /// `true` if the client reads too slowly.
    is_slow: AtomicBool,
}

impl Asking {
    /// Queues a reply; if the queue is full, disconnects the client.
    fn reply(&self, reply: Reply) {
        if let Err(TrySendError::Full(_)) = self.replies.try_send(reply) {
            log::warn!(
                "request {}: a client that reads too slowly is disconnected",
                self.id
            );
            self.is_slow.store(true, Ordering::Relaxed);
            // The client may have disconnected already.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Client for Asking {
    fn is_gone(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed) || hung_up(&*self.stream)
    }

    fn event(&mut self, event: &Event<'_>) {
        if let Event::Text(delta) = event
            && self.is_streamed
        {
            self.reply(Reply::Delta {
                id: self.id.clone(),
                delta: (*delta).to_owned(),
            });
        }
    }

    fn done(self: Box<Self>, answer: Result<Answer, EngineError>, _waited: Duration) {
        self.reply(Reply::last(self.id.clone(), &answer));
    }
}

/// State shared by all client threads.
struct Server {
    service: Service,
    patience: Patience,
    clients: Mutex<Vec<Connected>>,
}

/// A connected client.
struct Connected {
    stream: Arc<UnixStream>,
    /// Time of the last activity; `None` while a request is being answered.
    silent_since: Option<Instant>,
}

/// Accepts clients on separate threads.
pub fn accept(listener: UnixListener, service: Service, patience: Patience) {
    let server = Arc::new(Server {
        service,
        patience,
        clients: Mutex::new(Vec::new()),
    });
    thread::spawn(move || {
        let refusals = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => server.welcome(Arc::new(stream), &refusals),
                Err(error) => {
                    log::warn!("a client could not connect: {error}");
                    // One cause is a lack of file descriptors: other clients must finish first.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    });
}

/// Returns `true` if the peer has closed its reading side. A client that has only finished sending
/// still reads.
pub fn hung_up(output: &impl AsFd) -> bool {
    let mut poll = [PollFd::new(output, PollFlags::empty())];
    let now = Timespec::default();
    rustix::event::poll(&mut poll, Some(&now)).is_ok()
        && poll[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}

impl Server {
    fn clients(&self) -> MutexGuard<'_, Vec<Connected>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client on a separate thread, or rejects it.
    fn welcome(self: &Arc<Self>, stream: Arc<UnixStream>, refusals: &Arc<AtomicUsize>) {
        if !self.make_room() {
            refuse(stream, refusals);
            return;
        }
        self.clients().push(Connected {
            stream: stream.clone(),
            silent_since: Some(Instant::now()),
        });
        let server = self.clone();
        thread::spawn(move || {
            if let Err(error) = server.serve(&stream) {
                log::debug!("a client is gone: {error}");
            }
            server
                .clients()
                .retain(|client| !Arc::ptr_eq(&client.stream, &stream));
        });
    }

    /// Returns `true` if there is a place for another client; may disconnect the one that has been
    /// idle longest.
    fn make_room(&self) -> bool {
        let mut clients = self.clients();
        if clients.len() < MAX_CLIENTS {
            return true;
        }
        let silent = clients
            .iter()
            .enumerate()
            .filter_map(|(i, client)| Some((client.silent_since?, i)))
            .min();
        match silent {
            Some((since, i)) if since.elapsed() >= EVICTION_AGE => {
                let client = clients.swap_remove(i);
                say(
                    &client.stream,
                    "disconnected to make room for another client",
                );
                // Its thread then reads the end of the stream.
                let _ = client.stream.shutdown(Shutdown::Both);
                true
            }
            _ => false,
        }
    }

    /// Records activity of a client, or that its request is being answered.
    fn note(&self, stream: &Arc<UnixStream>, silent_since: Option<Instant>) {
        let mut clients = self.clients();
        let client = clients.iter_mut().find(|c| Arc::ptr_eq(&c.stream, stream));
        if let Some(client) = client {
            client.silent_since = silent_since;
        }
    }

    fn serve(&self, stream: &Arc<UnixStream>) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let requests = self.service.requests().clone();
        let owner = Owner::Connection(self.service.next_connection());
        let mut lines = Lines::new(stream.clone(), self.patience, requests, MAX_LINE);
        loop {
            let line = match lines.next() {
                Ok(None) => return Ok(()),
                Ok(Some(line)) => line,
                Err(error) => {
                    if error.kind() == io::ErrorKind::TimedOut {
                        say(
                            stream,
                            "disconnected: no complete request within the time limit",
                        );
                    }
                    return Err(error);
                }
            };
            self.note(stream, None);
            match line {
                Line::Request(line, _reserved) => self.answer(owner, stream, &line)?,
                Line::TooLong => write(
                    stream,
                    &Reply::error(format!("the request is longer than {MAX_LINE} bytes")),
                )?,
                Line::NoMemory => write(
                    stream,
                    &Reply::error(format!(
                        "unfinished requests already take {REQUEST_BYTES} bytes; try again later"
                    )),
                )?,
            }
            self.note(stream, Some(Instant::now()));
        }
    }

    /// Queues a request for the engine and forwards its replies.
    fn answer(&self, owner: Owner, stream: &Arc<UnixStream>, line: &[u8]) -> io::Result<()> {
        let question = match Question::parse(line) {
            Ok(question) => question,
            Err(reply) => return write(stream, &reply),
        };
        let entry = match self.service.enter(owner) {
            Ok(entry) => entry,
            Err(full) => {
                let id = question.id;
                let error = full.to_string();
                return write(stream, &Reply::Error { id, error });
            }
        };
        log::debug!(
            "request {} waits, {} are ahead",
            question.id,
            entry.position()
        );
        let permit = (question.has_media()).then(|| self.service.decoded().acquire());
        if hung_up(&**stream) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let request = match question.prepare(self.service.limits()) {
            Ok(request) => request,
            Err(reply) => return write(stream, &reply),
        };
        let (replies, answers) = sync_channel(WAITING_REPLIES);
        let client = Asking {
            id: question.id,
            is_streamed: question.stream,
            stream: stream.clone(),
            replies,
            is_slow: AtomicBool::new(false),
        };
        entry.submit(request, Box::new(client), Box::new(permit));
        // The iteration ends when the engine drops the client after the last reply.
        answers
            .into_iter()
            .try_for_each(|reply| write(stream, &reply))
    }
}

fn write(stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut stream = stream;
    stream.write_all(format!("{}\n", reply.line()).as_bytes())
}

/// Sends a reason to a client that is about to be disconnected, if possible.
fn say(stream: &UnixStream, message: &str) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = write(stream, &Reply::error(message.to_owned()));
}

/// Tells a client that all places are taken. Reads the stream until the client closes it, because a
/// client that writes to a closed stream would never read the reply.
fn refuse(stream: Arc<UnixStream>, refusals: &Arc<AtomicUsize>) {
    if refusals.fetch_add(1, Ordering::Relaxed) >= MAX_REFUSALS {
        refusals.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let refusals = refusals.clone();
    thread::spawn(move || {
        say(
            &stream,
            &format!("all {MAX_CLIENTS} places are taken; try again later"),
        );
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let until = Instant::now() + Duration::from_secs(2);
        let mut dropped = [0; 4096];
        while Instant::now() < until {
            match io::Read::read(&mut &*stream, &mut dropped) {
                Ok(1..) => {}
                _ => break,
            }
        }
        refusals.fetch_sub(1, Ordering::Relaxed);
    });
}
