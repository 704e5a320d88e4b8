//! A server and a small HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A file of the demo.
pub fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

/// A server that ends with its test.
pub struct Server {
    child: Child,
    /// Address with port.
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server of the demo's model on a free port.
    pub fn start(options: &[&str]) -> Self {
        Self::with_model(&demo("qwen2vl-tiny.bpk"), options)
    }

    /// Starts a server on a free port.
    pub fn with_model(model: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
        command.arg("serve").arg(model);
        command.args(["--http", "127.0.0.1:0"]).args(options);
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("its messages")).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.expect("a message");
            let address = line.split_once("listens on http://");
            address.map(|(_, address)| address.to_owned())
        });
        // Reads on, so that the server never waits for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address: address.expect("an address"),
        }
    }

    /// Opens a connection.
    pub fn connect(&self) -> Client {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        let timeout = Some(Duration::from_secs(60));
        stream.set_read_timeout(timeout).expect("a time limit");
        Client {
            input: BufReader::new(stream.try_clone().expect("a second handle")),
            output: stream,
        }
    }

    /// Sends a request on a connection of its own.
    pub fn get(&self, path: &str) -> Reply {
        let mut client = self.connect();
        client.send("GET", path, &[], b"");
        client.receive()
    }

    /// Sends JSON on a connection of its own.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        let mut client = self.connect();
        client.post(path, body);
        client.receive()
    }

    /// Asks for an answer to messages and returns the reply.
    pub fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body)
    }
}

/// A connection.
pub struct Client {
    pub input: BufReader<TcpStream>,
    pub output: TcpStream,
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// Returns the body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Returns a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the text of an answer.
    pub fn text(&self) -> String {
        let json = self.json();
        let text = json["choices"][0]["message"]["content"].as_str();
        text.unwrap_or_else(|| panic!("no answer in {self:?}"))
            .to_owned()
    }

    /// Returns the JSON of each server-sent event; the last one is `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let data = self.body.split_terminator("\n\n");
        let mut data: Vec<&str> = data
            .filter_map(|event| event.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{self:?}");
        let parse = |data: &str| serde_json::from_str(data).unwrap_or_else(|_| panic!("{data}"));
        data.into_iter().map(parse).collect()
    }
}

impl Client {
    /// Sends a request.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += "host: localhost\r\n";
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent = self.output.write_all(format!("{head}\r\n").as_bytes());
        sent.expect("the head is sent");
        self.output.write_all(body).expect("the body is sent");
    }

    /// Sends JSON.
    pub fn post(&mut self, path: &str, body: &Value) {
        let kind = [("content-type", "application/json")];
        self.send("POST", path, &kind, body.to_string().as_bytes());
    }

    /// Reads the head of a reply.
    pub fn head(&mut self) -> Reply {
        let status = self.line();
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Reply {
            status: status.expect("a status"),
            headers,
            body: String::new(),
        }
    }

    /// Reads a line without its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Reads a whole reply.
    pub fn receive(&mut self) -> Reply {
        let mut reply = self.head();
        let mut body = Vec::new();
        match reply.header("content-length") {
            Some(length) => {
                body.resize(length.parse().expect("a length"), 0);
                self.input.read_exact(&mut body).expect("the body");
            }
            None if reply.header("transfer-encoding") == Some("chunked") => loop {
                let length = usize::from_str_radix(&self.line(), 16).expect("a length");
                let start = body.len();
                body.resize(start + length, 0);
                self.input.read_exact(&mut body[start..]).expect("a chunk");
                assert_eq!(self.line(), "");
                if length == 0 {
                    break;
                }
            },
            None => {}
        }
        reply.body = String::from_utf8(body).expect("UTF-8");
        reply
    }
}
