//! A server that answers like the Hugging Face hub, or maliciously.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// A repository with files, on a local port until the process ends.
pub struct Hub {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    headers: Vec<String>,
}

impl Request {
    /// Returns the value of a header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter_map(|line| line.split_once(": "));
        let value = values.find(|(found, _)| found.eq_ignore_ascii_case(name));
        value.map(|(_, value)| value).unwrap_or_default()
    }
}

/// A reply. The content length is that of the body unless `headers` has one.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: &'static str,
    pub headers: String,
    pub body: Vec<u8>,
    pub end: End,
}

/// The end of a reply after its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test has all of them")]
pub enum End {
    /// The connection is closed.
    Close,
    /// The connection stays open without further bytes.
    Stall,
    /// Single bytes follow slowly.
    Drip,
    /// More bytes follow, without an end.
    Endless,
}

impl Reply {
    pub fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.into(),
            end: End::Close,
        }
    }

    pub fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// Replaces the reply to a request.
type Hook = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

impl Hub {
    /// Starts a server with one repository, such as `OWNER/NAME` or `datasets/OWNER/NAME`.
    pub fn new(repository: &str, token: &str, files: Files) -> Self {
        Self::with(repository, token, files, Box::new(|_, reply| reply))
    }

    /// Starts a server whose replies pass through `hook`.
    pub fn with(repository: &str, token: &str, files: Files, hook: Hook) -> Self {
        let (store, store_address) = listen("localhost");
        let (hub, address) = listen("127.0.0.1");
        let requests = Arc::default();
        let shared = Arc::new(Shared {
            repository: repository.to_owned(),
            authorization: format!("Bearer {token}"),
            files,
            store: format!("http://{store_address}"),
            hook,
            requests: Arc::clone(&requests),
        });
        for (listener, is_store) in [(hub, false), (store, true)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let shared = Arc::clone(&shared);
                    let stream = stream.expect("a connection");
                    std::thread::spawn(move || shared.answer(stream, is_store));
                }
            });
        }
        Self {
            endpoint: format!("http://{address}"),
            requests,
        }
    }

    /// Returns the requests so far.
    #[allow(dead_code, reason = "not every test looks at them")]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn listen(host: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, format!("{host}:{port}"))
}

struct Shared {
    repository: String,
    authorization: String,
    files: Files,
    /// Address of the store of large files.
    store: String,
    hook: Hook,
    requests: Arc<Mutex<Vec<Request>>>,
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf"]
        .iter()
        .any(|end| name.ends_with(end))
}

impl Shared {
    /// Answers one request.
    fn answer(&self, mut stream: TcpStream, is_store: bool) {
        let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
        let mut next = || lines.next().and_then(Result::ok).unwrap_or_default();
        let first = next();
        let headers = std::iter::from_fn(|| Some(next()).filter(|line| !line.is_empty()));
        let request = Request {
            headers: headers.collect(),
            path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        };
        let reply = match is_store {
            true => self.content(&request, request.path.trim_start_matches('/')),
            false => self.reply(&request),
        };
        let reply = (self.hook)(&request, reply);
        self.requests.lock().expect("no panic").push(request);
        // A client that goes away is its own affair.
        let _ = send(&mut stream, &reply);
    }

    fn reply(&self, request: &Request) -> Reply {
        if request.header("authorization") != self.authorization {
            return Reply::new("401 Unauthorized", "");
        }
        let repository = &self.repository;
        let api = match repository.strip_prefix("datasets/") {
            Some(_) => repository.clone(),
            None => format!("models/{repository}"),
        };
        let listing = format!("/api/{api}/revision/main?blobs=true");
        let prefix = format!("/{repository}/resolve/c1/");
        match request.path.strip_prefix(&prefix) {
            Some(name) if is_large(name) => {
                Reply::new("302 Found", "").header("Location", format!("{}/{name}", self.store))
            }
            Some(name) => self.content(request, name),
            None if request.path == listing => Reply::new("200 OK", self.listing()),
            None => Reply::new("404 Not Found", ""),
        }
    }

    fn listing(&self) -> String {
        let file = |(name, content): &(&str, Vec<u8>)| {
            let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(content));
            let lfs = is_large(name).then(|| json!({"size": content.len(), "sha256": digest}));
            json!({"rfilename": name, "size": content.len(), "lfs": lfs})
        };
        let files: Vec<_> = self.files.iter().map(file).collect();
        json!({"sha": "c1", "siblings": files}).to_string()
    }

    fn content(&self, request: &Request, name: &str) -> Reply {
        let Some((_, content)) = self.files.iter().find(|(file, _)| *file == name) else {
            return Reply::new("404 Not Found", "");
        };
        match request.header("range").strip_prefix("bytes=") {
            None => Reply::new("200 OK", content.clone()),
            Some(range) => {
                let start: usize = range.trim_end_matches('-').parse().expect("a number");
                let (end, size) = (content.len() - 1, content.len());
                let reply = Reply::new("206 Partial Content", content[start..].to_vec());
                reply.header("Content-Range", format!("bytes {start}-{end}/{size}"))
            }
        }
    }
}

fn send(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {}\r\nConnection: close\r\n{}",
        reply.status, reply.headers
    );
    if !reply.headers.contains("Content-Length") && reply.end == End::Close {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body)?;
    loop {
        match reply.end {
            End::Close => return Ok(()),
            End::Stall => std::thread::sleep(Duration::from_secs(3600)),
            End::Drip => std::thread::sleep(Duration::from_millis(100)),
            End::Endless => stream.write_all(&[0; 1 << 16])?,
        }
        stream.write_all(b" ")?;
    }
}
