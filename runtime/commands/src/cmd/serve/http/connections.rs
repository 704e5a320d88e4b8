//! Connections: one thread runs all of them, at most a certain number.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use edge_lmm::serve::openai::ApiError;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::routes::{Server, serve};
use super::timed::Timed;

/// Limit for the head of a request, and between two requests of a connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Maximum bytes of the head of a request.
const MAX_HEAD: usize = 32 << 10;
/// Maximum headers of a request.
const MAX_HEADERS: usize = 64;
/// Maximum threads that parse requests and decode media.
const MAX_THREADS: usize = 128;
/// Idle time after which a connection may be closed for a new one.
const EVICTION_AGE: Duration = Duration::from_millis(100);
/// Starts the thread that accepts and runs connections.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(listener: TcpListener, server: Server, most: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(MAX_THREADS)
        .build()
        .context("cannot start the HTTP server")?;
    let start = move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, Arc::new(server), most).await,
                Err(error) => log::error!("the HTTP server cannot listen: {error}"),
            }
        });
    };
    let thread = thread::Builder::new().name("http".to_owned());
    thread
        .spawn(start)
        .context("cannot start the HTTP server")?;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, server: Arc<Server>, most: usize) {
    let connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => connections.welcome(stream, peer, &server, most),
            Err(error) => {
                log::warn!("a client could not connect: {error}");
                // One cause is a lack of file descriptors: other clients must finish first.
                tokio::time::sleep(EVICTION_AGE).await;
            }
        }
    }
}

/// The open connections by number.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<HashMap<u64, State>>>);

struct State {
    /// Time since which the client owes a complete request; `None` while one is answered.
    idle_since: Option<Instant>,
    /// Known once the connection runs.
    task: Option<AbortHandle>,
}

impl Connections {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a connection, or rejects it.
    fn welcome(&self, stream: TcpStream, peer: SocketAddr, server: &Arc<Server>, most: usize) {
        if !self.make_room(most) {
            refuse(stream);
            return;
        }
        let number = server.service.next_connection();
        let connection = self.open(number, peer.ip());
        let task = tokio::spawn(run(stream, connection, server.clone()));
        if let Some(state) = self.all().get_mut(&number) {
            state.task = Some(task.abort_handle());
        }
    }

    /// Adds a connection.
    fn open(&self, number: u64, peer: IpAddr) -> Connection {
        let state = State {
            idle_since: Some(Instant::now()),
            task: None,
        };
        self.all().insert(number, state);
        Connection(Arc::new(Open {
            connections: self.clone(),
            number,
            peer,
        }))
    }

    /// Returns `true` if there is a place for another connection; may close the one that has been
    /// idle longest.
    fn make_room(&self, most: usize) -> bool {
        let mut all = self.all();
        if all.len() < most {
            return true;
        }
        let idle = all
            .iter()
            .filter_map(|(&number, state)| Some((state.idle_since?, number)))
            .min();
        match idle {
            Some((since, number)) if since.elapsed() >= EVICTION_AGE => {
                if let Some(task) = all.remove(&number).and_then(|state| state.task) {
                    task.abort();
                }
                true
            }
            _ => false,
        }
    }
}

/// Tells a client that all connections are busy, if it reads.
fn refuse(stream: TcpStream) {
    let error = ApiError::new(503, "too_many_connections", "all connections are busy");
    let body = error.body().to_string();
    let reply = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    if let Ok(mut stream) = stream.into_std() {
        // The reply fits into the empty buffer of the socket.
        let _ = stream.write_all(reply.as_bytes());
    }
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub struct Connection(Arc<Open>);

struct Open {
    connections: Connections,
    number: u64,
    peer: IpAddr,
}

impl Connection {
    /// Creates a connection that is the only one.
    #[cfg(feature = "fuzz")]
    pub fn alone(number: u64, peer: IpAddr) -> Self {
        Connections::default().open(number, peer)
    }

    /// Returns `true` while a request is answered.
    #[cfg(feature = "fuzz")]
    pub fn is_busy(&self) -> bool {
        let all = self.0.connections.all();
        all.get(&self.0.number)
            .is_some_and(|state| state.idle_since.is_none())
    }

    /// Returns the number of the connection in this process.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Returns the address of the client.
    pub fn peer(&self) -> IpAddr {
        self.0.peer
    }

    /// Marks the connection as one whose request is answered.
    pub fn set_busy(&self, is_busy: bool) {
        if let Some(state) = self.0.connections.all().get_mut(&self.0.number) {
            state.idle_since = (!is_busy).then(Instant::now);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.all().remove(&self.number);
    }
}

async fn run(stream: TcpStream, connection: Connection, server: Arc<Server>) {
    // Without it, pieces of an answer would wait for each other.
    let _ = stream.set_nodelay(true);
    let peer = connection.peer();
    if let Err(error) = converse(stream, connection, server).await {
        log::debug!("the connection of {peer} ended: {error}");
    }
}

/// Answers the requests of a connection.
///
/// # Errors
/// If it breaks, or what it sends is not HTTP.
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: Connection,
    server: Arc<Server>,
) -> hyper::Result<()> {
    let service = service_fn(move |request| serve(server.clone(), connection.clone(), request));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Timed::new(stream)), service)
        .await
}
