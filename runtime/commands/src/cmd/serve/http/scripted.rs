//! Connections whose input is known in advance, for fuzz targets.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use anyhow::Context as _;
use edge_lmm::media::FrameSelection;
use edge_lmm::serve::Limits;
use edge_lmm::{Device, Record, demo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use super::access::{Access, Key};
use super::connections::{Connection, converse};
use super::routes::{Facts, Server};
use crate::cmd::serve::answering::Answering;
use crate::cmd::serve::service::Service;

/// Maximum bytes of a body.
const MAX_BODY: usize = 1 << 16;
/// Maximum tokens of an answer.
const MAX_TOKENS: usize = 3;

/// A server with the embedded model and without a port.
pub struct Scripted {
    server: Arc<Server>,
    runtime: Runtime,
}

impl Scripted {
    /// Starts a server. Without a `key`, the names under which clients reach it are checked.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(key: Option<&str>) -> anyhow::Result<Self> {
        let record = Record::from_static(demo::RECORD, "the demo")?;
        let engine = Device::Cpu.load(&record)?;
        let limits = Limits {
            tool_syntax: engine.tool_syntax().unwrap_or_default(),
            ..Limits::new(MAX_TOKENS, FrameSelection::Uniform(2).into())
        };
        let service = Service::new(limits, 8, 1);
        let (running, session) = (service.clone(), engine.session());
        let answer = move || {
            Answering::new(session, None, 1).run(&running);
        };
        (thread::Builder::new()
            .name("engine".to_owned())
            .spawn(answer))
        .context("cannot start the engine")?;
        let server = Server {
            service,
            access: Access {
                key: key.map(|key| Key::new(key.to_owned())),
                hosts: vec!["board.example.org".to_owned()],
            },
            facts: Facts {
                name: "demo".to_owned(),
                created: 0,
                record_bytes: None,
                context: engine.context_length(),
                device: engine.device().to_string(),
            },
            max_body: MAX_BODY,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        Ok(Self {
            server: Arc::new(server),
            runtime,
        })
    }

    /// Sends the input of a connection and returns the output. The client waits for the replies to
    /// its complete requests before it disconnects.
    pub fn replies(&self, input: &[u8]) -> Vec<u8> {
        let number = self.server.service.next_connection();
        let connection = Connection::alone(number, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let wire = Rc::new(RefCell::new(Wire::new(input)));
        let stream = Stream(wire.clone());
        let conversation = converse(stream, connection.clone(), self.server.clone());
        self.runtime.block_on(async {
            let mut conversation = pin!(conversation);
            poll_fn(|cx| {
                loop {
                    // Damaged input is an error.
                    if conversation.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    let mut wire = wire.borrow_mut();
                    if wire.is_closed || !wire.is_starved || connection.is_busy() {
                        return Poll::Pending;
                    }
                    wire.is_closed = true;
                }
            })
            .await;
        });
        std::mem::take(&mut wire.borrow_mut().output)
    }
}

/// Both directions of a connection.
struct Wire {
    input: Vec<u8>,
    /// Bytes of the input that were read.
    read: usize,
    /// `true` once the server has waited for more than the input.
    is_starved: bool,
    /// `true` if the client disconnects after its input.
    is_closed: bool,
    output: Vec<u8>,
}

impl Wire {
    fn new(input: &[u8]) -> Self {
        Self {
            input: input.to_vec(),
            read: 0,
            is_starved: false,
            is_closed: false,
            output: Vec::new(),
        }
    }
}

/// The server's end of a connection.
struct Stream(Rc<RefCell<Wire>>);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        let rest = &wire.input[wire.read..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        wire.read += count;
        if count > 0 || wire.is_closed {
            return Poll::Ready(Ok(()));
        }
        // The conversation is polled again when the connection is closed.
        wire.is_starved = true;
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
