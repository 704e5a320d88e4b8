//! The way of an answer from the engine's thread to its connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edge_lmm::serve::openai::ApiError;
use edge_lmm::{Answer, EngineError, Event, TokenLogprobs};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::cmd::serve::service::Client;

/// Maximum events that wait for a slow client, which is then disconnected.
const WAITING_EVENTS: usize = 1024;
/// Events of progress are dropped when fewer places are left.
const LEFT_FOR_TEXT: usize = WAITING_EVENTS / 2;

/// A message of the engine's thread to the connection of a request.
#[derive(Debug)]
pub enum Message {
    /// Progress of a stage.
    Progress {
        /// Name of the stage.
        stage: &'static str,
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// Further text, possibly none, with the tokens since the last one if they are asked for.
    Text(String, Vec<TokenLogprobs>),
    /// The end, with the time that the request waited.
    Done(Box<Answer>, Duration),
    /// The request failed.
    Failed(ApiError),
}

/// The sending end, which the engine's thread has.
pub struct Outlet {
    /// Id of the request, for the log.
    id: String,
    messages: Sender<Message>,
    is_streamed: bool,
    has_progress: bool,
    /// Tokens that were not sent yet.
    tokens: Vec<TokenLogprobs>,
    is_slow: AtomicBool,
}

/// Creates a channel for the request with this id. An answer that is not streamed has no events but its end; `has_progress` sends
/// the progress of stages as well.
pub fn pair(id: &str, is_streamed: bool, has_progress: bool) -> (Outlet, Receiver<Message>) {
    let (messages, receiver) = channel(WAITING_EVENTS);
    let outlet = Outlet {
        id: id.to_owned(),
        messages,
        is_streamed,
        has_progress,
        tokens: Vec::new(),
        is_slow: AtomicBool::new(false),
    };
    (outlet, receiver)
}

impl Outlet {
    fn send(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.messages.try_send(message) {
            log::warn!(
                "{}: a client that reads too slowly is disconnected",
                self.id
            );
            self.is_slow.store(true, Ordering::Relaxed);
        }
    }

    /// Ends the request with an error.
    pub fn fail(&self, error: ApiError) {
        self.send(Message::Failed(error));
    }

    fn send_text(&mut self, text: &str) {
        let tokens = std::mem::take(&mut self.tokens);
        self.send(Message::Text(text.to_owned(), tokens));
    }
}

impl Client for Outlet {
    fn is_gone(&self) -> bool {
        self.messages.is_closed() || self.is_slow.load(Ordering::Relaxed)
    }

    fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::Text(text) if self.is_streamed => self.send_text(text),
            Event::Logprobs(token) => self.tokens.push(token.clone()),
            Event::Progress { stage, done, total }
                if self.has_progress && self.messages.capacity() > LEFT_FOR_TEXT =>
            {
                self.send(Message::Progress { stage, done, total });
            }
            _ => {}
        }
    }

    fn done(mut self: Box<Self>, answer: Result<Answer, EngineError>, waited: Duration) {
        if !self.tokens.is_empty() {
            self.send_text("");
        }
        self.send(match answer {
            Ok(answer) => Message::Done(Box::new(answer), waited),
            Err(error) => Message::Failed(ApiError::from(&error)),
        });
    }
}
