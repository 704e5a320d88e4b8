//! Replies and their bodies.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use edge_lmm::serve::openai::{ApiError, Replies};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::events::Message;
use super::routes::Served;

/// Time without text after which a stream gets a comment, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The body of a reply, and what ends with it.
pub struct Reply {
    content: Content,
    /// Ends the request in the log and among the connections.
    pub served: Option<Served>,
}

enum Content {
    Whole(Option<Bytes>),
    Events(Box<EventStream>),
}

/// An answer that is sent as server-sent events while it is generated.
pub struct EventStream {
    replies: Replies,
    messages: Receiver<Message>,
    include_usage: bool,
    pending: VecDeque<Bytes>,
    is_finished: bool,
    keep_alive: Interval,
    /// Tokens of the answer, for the log.
    outcome: Option<(usize, usize)>,
}

impl EventStream {
    /// Creates the stream of an answer; `first` are the messages that were received before.
    pub fn new(
        replies: Replies,
        messages: Receiver<Message>,
        include_usage: bool,
        first: Option<Message>,
    ) -> Self {
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep_alive.reset();
        let mut stream = Self {
            replies,
            messages,
            include_usage,
            pending: VecDeque::new(),
            is_finished: false,
            keep_alive,
            outcome: None,
        };
        if let Some(first) = stream.replies.first() {
            stream.send(&first);
        }
        if let Some(message) = first {
            stream.take(message);
        }
        stream
    }

    /// Adds an event about the queue.
    pub fn say_position(&mut self, position: usize) {
        let event = self.replies.progress(json!({ "queue": position }));
        self.send(&event);
    }

    fn send(&mut self, event: &Value) {
        self.pending.push_back(format!("data: {event}\n\n").into());
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Progress { stage, done, total } => {
                let progress = json!({ "stage": stage, "done": done, "total": total });
                let event = self.replies.progress(progress);
                self.send(&event);
            }
            Message::Text(text, tokens) => {
                for event in self.replies.delta(&text, &tokens) {
                    self.send(&event);
                }
            }
            Message::Done(answer, waited) => {
                for event in self.replies.last(&answer, waited) {
                    self.send(&event);
                }
                if self.include_usage {
                    let usage = self.replies.usage(&answer);
                    self.send(&usage);
                }
                self.outcome = Some((answer.prompt_tokens, answer.tokens.len()));
                self.finish();
            }
            Message::Failed(error) => {
                self.send(&error.body());
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        self.pending
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.is_finished = true;
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.pending.pop_front() {
                self.keep_alive.reset();
                return Poll::Ready(Some(bytes));
            }
            if self.is_finished {
                return Poll::Ready(None);
            }
            match self.messages.poll_recv(cx) {
                Poll::Ready(Some(message)) => self.take(message),
                Poll::Ready(None) => {
                    self.send(&lost().body());
                    self.finish();
                }
                Poll::Pending if self.keep_alive.poll_tick(cx).is_ready() => {
                    self.pending.push_back(Bytes::from_static(b": wait\n\n"));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Returns the error of a request that the engine dropped.
pub fn lost() -> ApiError {
    ApiError::new(500, "canceled", "the request was canceled")
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let next = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take()),
            Content::Events(events) => {
                let next = events.poll_next(cx);
                if let (Some(served), Some((prompt, answer))) = (&mut this.served, events.outcome) {
                    served.tokens(prompt, answer);
                }
                next
            }
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Events(_) => SizeHint::default(),
        }
    }
}

fn reply(status: u16, kind: &'static str, content: Content) -> Response<Reply> {
    let mut response = Response::new(Reply {
        content,
        served: None,
    });
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Creates a reply of text.
pub fn text(kind: &'static str, text: impl Into<Bytes>) -> Response<Reply> {
    reply(200, kind, Content::Whole(Some(text.into())))
}

/// Creates a reply of JSON.
pub fn json(value: &Value) -> Response<Reply> {
    text("application/json", value.to_string())
}

/// Creates a reply of server-sent events.
pub fn events(stream: EventStream) -> Response<Reply> {
    reply(200, "text/event-stream", Content::Events(Box::new(stream)))
}

/// Creates an error reply.
pub fn error(error: &ApiError) -> Response<Reply> {
    let body = error.body().to_string();
    let content = Content::Whole(Some(body.into()));
    let mut response = reply(error.status, "application/json", content);
    let headers = response.headers_mut();
    if let Some(waiting) = error.waiting {
        headers.insert(RETRY_AFTER, waiting.retry_after.into());
        headers.insert("x-queue-position", waiting.position.into());
    }
    match error.status {
        401 => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        405 => {
            let method = if error.code == "use_post" {
                "POST"
            } else {
                "GET"
            };
            headers.insert(ALLOW, HeaderValue::from_static(method));
        }
        _ => {}
    }
    response
}
