//! Answers of the model.

use std::time::{Duration, SystemTime};

use edge_lmm::TokenLogprobs;
use edge_lmm::serve::openai::{ApiError, Ask, Endpoint, Replies, Waiting};
use hyper::Response;
use hyper::body::Incoming;
use tokio::sync::mpsc::Receiver;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::body;
use super::events::{self, Message, Outlet};
use super::options::seconds_since_1970;
use super::reply::{self, EventStream, Reply, lost};
use super::routes::{Request, Server};
use crate::cmd::serve::limits::Reservation;
use crate::cmd::serve::service::{Client, Entry, Service};

/// Time that a stream waits for its first text, so that an error still has a status of its own.
/// Then the stream begins, as proxies and clients give up on connections without a reply.
const FIRST_TEXT: Duration = Duration::from_secs(10);

/// The form of an answer.
#[derive(Clone, Copy)]
struct Form {
    stream: bool,
    include_usage: bool,
    progress: bool,
    logprobs: bool,
}

/// Answers a request of `endpoint`.
///
/// # Errors
/// The reply to a request that cannot be answered.
pub async fn answer(
    server: &Server,
    endpoint: Endpoint,
    request: &mut Request,
    body: Incoming,
) -> Result<Response<Reply>, ApiError> {
    let service = &server.service;
    let id = request.served.id();
    let (body, reserved) = body::read(body, server.max_body, service.requests(), id).await?;
    request.served.is_complete();
    let (ask, entry) = enter(server, endpoint, request, body).await?;
    let form = Form {
        stream: ask.stream,
        include_usage: ask.include_usage,
        progress: ask.progress,
        logprobs: ask.has_logprobs(),
    };
    let has_tools = ask.has_tools();
    let position = entry.position();
    let (outlet, messages) = events::pair(request.served.id(), form.stream, form.progress);
    let queue = service.clone();
    // Not awaited: what fails is one of the messages.
    spawn_blocking(move || submit(&queue, &ask, entry, outlet, reserved));

    let created = seconds_since_1970(SystemTime::now());
    let id = request.served.id();
    let mut replies = Replies::new(endpoint, id, created, &server.facts.name);
    if has_tools {
        replies = replies.with_calls(&server.service.limits().tool_syntax);
    }
    let mut response = match form.stream {
        true => stream(form, messages, replies, position).await?,
        false => whole(form, messages, replies, request).await?,
    };
    let headers = response.headers_mut();
    headers.insert("x-queue-position", position.into());
    Ok(response)
}

/// Parses a request and takes its place in the queue.
async fn enter(
    server: &Server,
    endpoint: Endpoint,
    request: &Request,
    body: Vec<u8>,
) -> Result<(Ask, Entry), ApiError> {
    let (service, owner) = (server.service.clone(), request.owner);
    let parsed = spawn_blocking(move || {
        let ask = Ask::parse(endpoint, &body, service.limits())?;
        Ok((ask, service))
    });
    let (ask, service) = parsed.await.unwrap_or_else(|_| Err(lost()))?;
    server.check_model(ask.model.as_deref())?;
    let entry = service.enter(owner).map_err(|full| {
        ApiError::full(Waiting {
            position: full.position,
            retry_after: full.retry_after,
        })
    })?;
    Ok((ask, entry))
}

/// Decodes the media of a request and queues it. Waits until few other requests have decoded media.
fn submit(service: &Service, ask: &Ask, entry: Entry, outlet: Outlet, reserved: Vec<Reservation>) {
    let permit = ask.has_media().then(|| service.decoded().acquire());
    if outlet.is_gone() {
        return;
    }
    match ask.prepare(service.limits()) {
        Ok(prepared) => entry.submit(prepared, Box::new(outlet), Box::new((permit, reserved))),
        Err(error) => outlet.fail(error),
    }
}

/// Collects an answer.
async fn whole(
    form: Form,
    mut messages: Receiver<Message>,
    replies: Replies,
    request: &mut Request,
) -> Result<Response<Reply>, ApiError> {
    let mut tokens: Vec<TokenLogprobs> = Vec::new();
    loop {
        match messages.recv().await {
            Some(Message::Text(_, more)) => tokens.extend(more),
            Some(Message::Progress { .. }) => {}
            Some(Message::Done(answer, waited)) => {
                let (prompt, count) = (answer.prompt_tokens, answer.tokens.len());
                request.served.tokens(prompt, count);
                let tokens = form.logprobs.then_some(&tokens[..]);
                return Ok(reply::json(&replies.whole(&answer, tokens, waited)));
            }
            Some(Message::Failed(error)) => return Err(error),
            None => return Err(lost()),
        }
    }
}

/// Begins a stream: at once if it reports progress, otherwise with the first text.
async fn stream(
    form: Form,
    mut messages: Receiver<Message>,
    replies: Replies,
    position: usize,
) -> Result<Response<Reply>, ApiError> {
    let mut first = None;
    if !form.progress
        && let Ok(message) = timeout(FIRST_TEXT, messages.recv()).await
    {
        first = match message {
            Some(Message::Failed(error)) => return Err(error),
            None => return Err(lost()),
            message => message,
        };
    }
    let mut events = EventStream::new(replies, messages, form.include_usage, first);
    if form.progress {
        events.say_position(position);
    }
    Ok(reply::events(events))
}
