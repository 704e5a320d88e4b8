//! Clients that send too much or too little, hang up, or do not read.

use std::io::{ErrorKind, Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, Server};
use super::{CHAT, QUESTION, hi, question, with};

/// A request whose answer takes far more than a minute.
pub fn endless() -> Value {
    with(hi(1_000_000), json!({ "ignore_eos": true }))
}

pub fn endless_server(options: &[&str]) -> Server {
    Server::start(&[&["--max-tokens", "30000"], options].concat())
}

/// Waits until the server is in a state.
pub fn wait_for(field: &str, value: Value, server: &Server) {
    let start = Instant::now();
    while server.get("/health").json()[field] != value {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{field} is never {value}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn large_requests_are_rejected() {
    let server = Server::start(&["--max-body", "1MiB"]);
    let mut client = server.connect();
    client.post(CHAT, &json!({ "messages": "a".repeat(3 << 20) }));
    let reply = client.receive();
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(reply.json()["error"]["code"], "request_too_large");
    // The length of a chunked body is not known before.
    let mut client = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    client.output.write_all(head.as_bytes()).expect("sent");
    let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
    for _ in 0..20 {
        client.output.write_all(&chunk).expect("sent");
    }
    client.output.write_all(b"0\r\n\r\n").expect("sent");
    assert_eq!(client.receive().status, 413);
    let mut client = server.connect();
    let long = "a".repeat(100 << 10);
    client.send("GET", "/health", &[("x-long", &long)], b"");
    assert_eq!(client.receive().status, 431);
    assert_eq!(server.chat(&question(QUESTION)).text(), "two");
}

/// One request is answered, one waits in the only place, and the third learns its position.
#[test]
fn a_full_queue_rejects_requests() {
    let server = endless_server(&["--queue", "1"]);
    let mut first = server.connect();
    first.post(CHAT, &endless());
    wait_for("answering", 1.into(), &server);
    let mut second = server.connect();
    second.post(CHAT, &endless());
    wait_for("queue", 1.into(), &server);
    let reply = server.chat(&hi(1));
    assert_eq!(reply.status, 429, "{reply:?}");
    let error = &reply.json()["error"];
    assert_eq!(error["position"], 2);
    assert_eq!(error["type"], "rate_limit_error");
    let seconds = reply
        .header("retry-after")
        .and_then(|s| s.parse::<u64>().ok());
    assert_eq!(seconds, error["retry_after"].as_u64());
    assert!(seconds >= Some(1));
    assert_eq!(reply.header("x-queue-position"), Some("2"));
    drop((first, second));
    let start = Instant::now();
    while server.chat(&hi(1)).status != 200 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "no place comes back"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request whose client is gone does not keep others waiting.
#[test]
fn a_client_that_hangs_up_cancels_its_work() {
    let server = endless_server(&[]);
    for stream in [false, true] {
        let mut gone = server.connect();
        gone.post(CHAT, &with(endless(), json!({ "stream": stream })));
        std::thread::sleep(Duration::from_millis(200));
        drop(gone);
    }
    let start = Instant::now();
    assert_eq!(server.chat(&hi(1)).status, 200);
    // Two answers of 30 000 tokens take far more than a minute.
    let time = start.elapsed();
    assert!(time < Duration::from_secs(20), "{time:?}");
    let metrics = server.get("/metrics").body;
    let counted = "edge_lmm_http_replies_total{path=\"/v1/chat/completions\",status=\"499\"}";
    assert!(metrics.contains(counted), "{metrics}");
}

/// Clients that send half a request, or nothing, or read nothing do not keep others waiting.
#[test]
fn slow_clients_keep_nobody_waiting() {
    let server = endless_server(&["--connections", "4"]);
    let mut slow: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let half = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n");
    let head = format!("{half}content-type: application/json\r\n\r\n{{\"messages\"");
    for (client, start) in slow.iter_mut().zip(["", "GET", &half, &head]) {
        client.output.write_all(start.as_bytes()).expect("sent");
    }
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(server.chat(&hi(1)).status, 200);
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(150));
    }
    // Some of them have made room.
    let is_closed = |client: &mut Client| {
        let short = Some(Duration::from_millis(200));
        client.output.set_read_timeout(short).expect("a limit");
        let read = client.input.read(&mut [0; 1]);
        read.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |n| n == 0)
    };
    assert!(slow.iter_mut().any(is_closed));
}

/// The server keeps a limited number of events for a client that does not read; then it gives up.
#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let server = endless_server(&[]);
    let mut deaf = server.connect();
    let fields = json!({ "stream": true, "logprobs": true, "top_logprobs": 20 });
    deaf.post(CHAT, &with(endless(), fields));
    let start = Instant::now();
    assert_eq!(server.chat(&hi(1)).status, 200);
    let time = start.elapsed();
    assert!(time < Duration::from_secs(120), "{time:?}");
}

/// No request makes the server open a file: a pipe would never answer.
#[test]
fn no_file_is_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo starts").success());
    let server = Server::start(&[]);
    let path = pipe.to_str().expect("a path");
    for url in [
        path.to_owned(),
        format!("file://{path}"),
        format!("FILE:{path}"),
        format!("http://localhost/{path}"),
        String::new(),
    ] {
        for part in [
            json!({ "type": "image_url", "image_url": { "url": url } }),
            json!({ "type": "image_url", "image_url": url }),
            json!({ "type": "video_url", "video_url": { "url": url } }),
            json!({ "type": "input_audio", "input_audio": { "data": url } }),
            json!({ "type": "file", "file": { "file_data": url } }),
            json!({ "type": "file", "file": { "filename": url } }),
            json!({ "type": "file", "file": { "file_id": url } }),
        ] {
            let request = json!({ "messages": [{ "role": "user", "content": [part] }] });
            let reply = server.chat(&request);
            assert_eq!(reply.status, 400, "{request}: {reply:?}");
        }
    }
    assert_eq!(server.chat(&question(QUESTION)).text(), "two");
}

#[test]
fn damaged_requests_are_rejected() {
    let server = Server::start(&[]);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz",
        b"{\"prompt\": \"hi\"}\n",
    ] {
        let mut client = server.connect();
        client.output.write_all(bytes).expect("sent");
        let ended = client.output.shutdown(std::net::Shutdown::Write);
        ended.expect("it ends");
        let mut reply = Vec::new();
        // The connection may be reset.
        let _ = client.input.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{reply}");
    }
    assert_eq!(server.chat(&hi(1)).status, 200);
}
