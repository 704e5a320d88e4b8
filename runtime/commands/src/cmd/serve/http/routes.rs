//! The paths of the server.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use edge_lmm::health::System;
use edge_lmm::report::{peak_resident_bytes, resident_bytes};
use edge_lmm::serve::openai::{ApiError, Endpoint};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Response};
use serde_json::{Value, json};

use super::access::Access;
use super::answer::answer;
use super::body;
use super::connections::Connection;
use super::page::page;
use super::reply::{self, Reply};
use crate::cmd::serve::metrics::Load;
use crate::cmd::serve::queue::Owner;
use crate::cmd::serve::service::Service;

/// Longest id of a request that a client may choose.
const MAX_ID: usize = 64;

/// The state that all requests share.
pub struct Server {
    /// Queue and engine.
    pub service: Service,
    /// The rules of access.
    pub access: Access,
    /// The model.
    pub facts: Facts,
    /// Maximum bytes of a body.
    pub max_body: usize,
}

/// Properties of the model.
pub struct Facts {
    /// Name for clients.
    pub name: String,
    /// Time of the record, in seconds since 1970.
    pub created: u64,
    /// Size of the record.
    pub record_bytes: Option<u64>,
    /// Largest number of tokens of a conversation.
    pub context: usize,
    /// Device of the model.
    pub device: String,
}

/// A request that is being answered.
pub struct Request {
    /// Its client.
    pub owner: Owner,
    /// Its entry in the log.
    pub served: Served,
}

/// A request in the log, which is written on drop.
pub struct Served {
    id: String,
    method: Method,
    path: &'static str,
    peer: IpAddr,
    status: Option<u16>,
    tokens: Option<(usize, usize)>,
    start: Instant,
    server: Arc<Server>,
    connection: Connection,
}

impl Served {
    /// Returns the id of the request.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The request has arrived completely: its connection is not closed for another one.
    pub fn is_complete(&mut self) {
        self.connection.set_busy(true);
    }

    /// Remembers the tokens of prompt and answer.
    pub fn tokens(&mut self, prompt: usize, answer: usize) {
        self.tokens = Some((prompt, answer));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.connection.set_busy(false);
        // The status that proxies log for clients that hang up.
        let status = self.status.unwrap_or(499);
        self.server.service.metrics().reply(self.path, status);
        let ms = self.start.elapsed().as_millis();
        let tokens = match self.tokens {
            Some((prompt, answer)) => format!(", {prompt} + {answer} tokens"),
            None => String::new(),
        };
        let Self {
            id,
            method,
            path,
            peer,
            ..
        } = self;
        log::info!("{id} {peer} {method} {path} {status} in {ms} ms{tokens}");
    }
}

/// The function of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Page,
    Answer(Endpoint),
    Models,
    Model,
    Health,
    Metrics,
    Unknown,
}

impl Route {
    /// Returns the function of a path and its name in logs and counters.
    fn of(path: &str) -> (Self, &'static str) {
        match path {
            "/" => (Self::Page, "/"),
            "/v1/chat/completions" => (Self::Answer(Endpoint::Chat), "/v1/chat/completions"),
            "/v1/completions" => (Self::Answer(Endpoint::Completion), "/v1/completions"),
            "/v1/models" => (Self::Models, "/v1/models"),
            "/health" => (Self::Health, "/health"),
            "/metrics" => (Self::Metrics, "/metrics"),
            path if path.starts_with("/v1/models/") => (Self::Model, "/v1/models/*"),
            _ => (Self::Unknown, "*"),
        }
    }

    fn needs_key(self) -> bool {
        !matches!(self, Self::Page | Self::Health)
    }
}

/// Answers a request.
///
/// # Errors
/// Never.
pub async fn serve(
    server: Arc<Server>,
    connection: Connection,
    request: hyper::Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let (head, body) = request.into_parts();
    let (route, path) = Route::of(head.uri.path());
    let peer = connection.peer();
    let owner = match peer.is_loopback() {
        true => Owner::Connection(connection.number()),
        false => Owner::Address(peer),
    };
    let mut request = Request {
        owner,
        served: Served {
            id: request_id(&head.headers, connection.number()),
            method: head.method.clone(),
            path,
            peer,
            status: None,
            tokens: None,
            start: Instant::now(),
            server: server.clone(),
            connection,
        },
    };
    let checked = check(&server, route, &head.method, &head.headers);
    let replied = match (checked, route) {
        (Err(error), _) => {
            body::skip(body).await;
            Err(error)
        }
        (Ok(()), Route::Answer(endpoint)) => answer(&server, endpoint, &mut request, body).await,
        (Ok(()), route) => inform(&server, route, head.uri.path()),
    };
    let mut response = replied.unwrap_or_else(|error| {
        log::info!("{} is rejected: {}", request.served.id, error.message);
        reply::error(&error)
    });
    let mut served = request.served;
    served.status = Some(response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&served.id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response.body_mut().served = Some(served);
    Ok(response)
}

/// Checks everything but the body.
fn check(
    server: &Server,
    route: Route,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    server.access.check_host(headers)?;
    if route.needs_key() {
        server.access.check_key(headers)?;
    }
    let is_answer = matches!(route, Route::Answer(_));
    match (is_answer, method) {
        _ if route == Route::Unknown => Err(ApiError::new(
            404,
            "unknown_path",
            "unknown path: expected /v1/chat/completions, /v1/completions, /v1/models, /health or \
             /metrics",
        )),
        (true, &Method::POST) => check_content_type(headers),
        (false, &Method::GET | &Method::HEAD) => Ok(()),
        (true, _) => Err(ApiError::new(405, "use_post", "this path takes POST")),
        (false, _) => Err(ApiError::new(405, "use_get", "this path takes GET")),
    }
}

/// Requires JSON. Web pages of others can send other types without asking the browser for
/// permission.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::new(
            415,
            "unsupported_media_type",
            "the request is not JSON: expected the header \"Content-Type: application/json\"",
        )),
    }
}

/// Returns the id that the client sent, or a new one.
fn request_id(headers: &HeaderMap, connection: u64) -> String {
    let is_plain = |id: &&str| {
        let mut bytes = id.bytes();
        (1..=MAX_ID).contains(&id.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    match given.filter(is_plain) {
        Some(id) => id.to_owned(),
        None => new_id(connection),
    }
}

/// Returns an id that is unique in this process and likely in others.
fn new_id(connection: u64) -> String {
    use std::hash::{BuildHasher, RandomState};
    // The keys differ from call to call.
    format!("{:016x}", RandomState::new().hash_one(connection))
}

/// Answers a request for information.
fn inform(server: &Server, route: Route, path: &str) -> Result<Response<Reply>, ApiError> {
    Ok(match route {
        Route::Page => page(),
        Route::Models => reply::json(&json!({ "object": "list", "data": [server.model()] })),
        Route::Model => {
            let name = path.strip_prefix("/v1/models/");
            server.check_model(name)?;
            reply::json(&server.model())
        }
        Route::Metrics => {
            let (waiting, answering) = server.service.load();
            let text = server.service.metrics().text(&Load { waiting, answering });
            reply::text("text/plain; version=0.0.4; charset=utf-8", text)
        }
        Route::Health | Route::Answer(_) | Route::Unknown => reply::json(&server.health()),
    })
}

impl Server {
    /// Checks the name of a model; none stands for the one that is served.
    ///
    /// # Errors
    /// If another model is wanted.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let own = &self.facts.name;
        match name {
            Some(name) if name != own && !name.is_empty() => Err(ApiError {
                param: Some("model".to_owned()),
                ..ApiError::new(
                    404,
                    "model_not_found",
                    format!("unknown model: this server has {own:?}"),
                )
            }),
            _ => Ok(()),
        }
    }

    fn model(&self) -> Value {
        let facts = &self.facts;
        json!({
            "id": facts.name,
            "object": "model",
            "created": facts.created,
            "owned_by": "edge-lmm",
            "edge_lmm": {
                "context": facts.context,
                "record_bytes": facts.record_bytes,
                "device": facts.device,
                "max_tokens": self.service.limits().max_tokens,
                "version": env!("CARGO_PKG_VERSION"),
            },
        })
    }

    fn health(&self) -> Value {
        let (waiting, answering) = self.service.load();
        let memory = System::default().memory();
        json!({
            "status": "ok",
            "model": self.facts.name,
            "queue": waiting,
            "answering": answering,
            "resident_bytes": resident_bytes(),
            "peak_resident_bytes": peak_resident_bytes(),
            "usable_bytes": memory.map(|memory| memory.usable()),
        })
    }
}
