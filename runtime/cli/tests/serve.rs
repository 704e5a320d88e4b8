//! The server: requests and replies, one JSON object per line.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const QUESTION: &str = "how many shapes are there?";

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command
        .arg("serve")
        .arg(demo("qwen2vl-tiny.bpk"))
        .args(arguments);
    command
}

/// A server that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server on a socket and waits until it can be reached.
fn listen(socket: &Path, arguments: &[&str]) -> Running {
    let mut command = server(&["--socket", socket.to_str().expect("a readable path")]);
    let server = Running(command.args(arguments).spawn().expect("the server starts"));
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "no socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

struct Client {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let output = UnixStream::connect(socket).expect("a connection");
        // A reply that never comes fails the test.
        let patience = Some(Duration::from_secs(60));
        output.set_read_timeout(patience).expect("a time limit");
        Self {
            input: BufReader::new(output.try_clone().expect("a second handle")),
            output,
        }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.output, "{line}").expect("the request is sent");
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("a reply");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn ask(&mut self, request: Value) -> Value {
        self.send(&request.to_string());
        self.receive()
    }
}

fn image() -> Value {
    let bytes = std::fs::read(demo("shapes.png")).expect("the image");
    json!({ "base64": data_encoding::BASE64.encode(&bytes) })
}

#[test]
fn clients_are_answered_over_a_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--socket-mode", "600"]);
    let mode = std::fs::metadata(&socket)
        .expect("the socket")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    // A client that is connected and silent does not keep others waiting.
    let _silent = Client::connect(&socket);
    let mut client = Client::connect(&socket);
    let file = demo("shapes.png");
    for image in [json!(file), image()] {
        let reply = client.ask(json!({ "id": "a", "prompt": QUESTION, "images": [image] }));
        assert_eq!(reply["id"], "a");
        assert_eq!(reply["text"], "two", "{reply}");
        assert_eq!(reply["done"], true);
        assert_eq!(reply["visual_tokens"], 16);
    }
}

#[cfg(feature = "constraints")]
#[test]
fn answers_can_have_a_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut client = Client::connect(&socket);
    let mut ask = |field: &str, value: Value| {
        let mut request = json!({ "prompt": QUESTION, "max_tokens": 60 });
        request[field] = value;
        client.ask(request)
    };
    let schema = json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 3 });
    let reply = ask("json_schema", schema);
    let text = reply["text"].as_str().expect("a text");
    let list: Vec<bool> = serde_json::from_str(text).expect("JSON");
    assert!(list.len() <= 3, "{reply}");
    assert_eq!(ask("regex", json!("a{3}"))["text"], "aaa");
    assert_eq!(ask("grammar", json!("start: \"b\" \"c\""))["text"], "bc");
    let object = ask("json_object", json!(true));
    assert!(
        object["text"]
            .as_str()
            .is_some_and(|text| text.starts_with('{')),
        "{object}"
    );
    let error = ask("json_schema", json!({ "type": "txt" }));
    let message = error["error"].as_str().expect("an error");
    assert!(message.starts_with("invalid JSON schema"), "{message}");
    let several = client.ask(json!({ "prompt": "hi", "regex": "a", "json_object": true }));
    assert!(
        several["error"]
            .as_str()
            .is_some_and(|e| e.contains("only one")),
        "{several}"
    );
}

#[test]
fn text_can_come_piece_by_piece() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut client = Client::connect(&socket);
    let question = json!({ "prompt": "list the shapes.", "images": [image()], "stream": true });
    client.send(&question.to_string());
    let mut text = String::new();
    let done = loop {
        let reply = client.receive();
        match reply["delta"].as_str() {
            Some(delta) => text += delta,
            None => break reply,
        }
    };
    assert_eq!(text, "blue square, yellow cross");
    assert_eq!(done["text"], text);
}

/// Clients send base64 in lines, without padding and as URLs.
#[test]
fn images_come_in_all_spellings_of_base64() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut client = Client::connect(&socket);
    let bytes = std::fs::read(demo("shapes.png")).expect("the image");
    let text = data_encoding::BASE64.encode(&bytes);
    let lines: Vec<&str> = (0..text.len())
        .step_by(76)
        .map(|start| &text[start..text.len().min(start + 76)])
        .collect();
    let url = format!("data:image/png;base64,{text}");
    for image in [
        json!({ "base64": lines.join("\r\n") }),
        json!({ "base64": text.trim_end_matches('=') }),
        json!({ "base64": url }),
        json!(url),
    ] {
        let reply = client.ask(json!({ "prompt": QUESTION, "images": [image] }));
        assert_eq!(reply["text"], "two", "{reply}");
        assert_eq!(reply["finish_reason"], "stop");
    }
}

/// The encoder's output and the key-value cache survive from request to request.
#[test]
fn a_second_request_about_an_image_starts_at_its_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let ask = |prompt: &str| {
        let mut client = Client::connect(&socket);
        client.ask(json!({ "prompt": prompt, "images": [image()] }))
    };
    let first = ask(QUESTION);
    let second = ask("list the shapes.");
    assert_eq!(first["reused_tokens"], 0);
    assert!(second["reused_tokens"].as_u64() > Some(16), "{second}");
    assert_eq!(second["text"], "blue square, yellow cross");
    let stages = second["stages"].as_array().expect("stages");
    assert!(stages.iter().all(|stage| stage["name"] != "vision"));
}

/// A request whose client is gone does not keep others waiting.
#[test]
fn a_client_that_hangs_up_cancels_its_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--max-tokens", "30000"]);
    let endless = |stream: bool| json!({ "prompt": "hi", "max_tokens": 30000, "ignore_eos": true, "stream": stream });
    for stream in [false, true] {
        let mut gone = Client::connect(&socket);
        gone.send(&endless(stream).to_string());
        std::thread::sleep(Duration::from_millis(100));
        drop(gone);
    }
    let start = Instant::now();
    let reply = Client::connect(&socket).ask(json!({ "prompt": "hi", "max_tokens": 1 }));
    assert_eq!(reply["finish_reason"], "length");
    // Two answers of 30 000 tokens take far more than a minute.
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

/// With several requests at a time, a short one is answered beside a long one.
#[test]
fn a_long_answer_keeps_nobody_waiting_with_several_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--max-tokens", "30000", "--parallel", "2"]);
    let mut long = Client::connect(&socket);
    let endless =
        json!({ "prompt": "hi", "max_tokens": 30000, "ignore_eos": true, "stream": true });
    long.send(&endless.to_string());
    assert!(long.receive()["delta"].is_string());
    let question = json!({ "prompt": QUESTION, "images": [image()] });
    assert_eq!(Client::connect(&socket).ask(question)["text"], "two");
    assert!(long.receive()["delta"].is_string());
}

/// A pipe would make all clients wait for its writer, and a reply must not tell what a file holds.
#[test]
fn special_and_secret_files_stay_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let (pipe, secret) = (folder.path().join("pipe"), folder.path().join("secret"));
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo starts").success());
    std::fs::write(&secret, "password = 12345").expect("a file");
    let mut client = Client::connect(&socket);
    for (path, word) in [(&pipe, "a pipe"), (&secret, "not an image")] {
        let reply = client.ask(json!({ "prompt": "x", "images": [path] }));
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(error.contains(word), "{reply}");
        assert!(!error.contains("password"), "{reply}");
    }
    let reply = client.ask(json!({ "prompt": QUESTION, "images": [image()] }));
    assert_eq!(reply["text"], "two");
}

/// Input of a client is limited before memory is allocated for it.
#[test]
fn oversized_requests_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut client = Client::connect(&socket);
    for (request, word) in [
        (json!({ "id": "x".repeat(300), "prompt": "hi" }), "\"id\""),
        (json!({ "id": [1], "prompt": "hi" }), "\"id\""),
        (json!({ "prompt": "a".repeat(20 << 20) }), "shorten it"),
        (json!({ "prompt": "a".repeat(70 << 20) }), "longer than"),
        (
            json!({ "prompt": "x", "images": vec!["x.png"; 65] }),
            "at most 64",
        ),
    ] {
        let reply = client.ask(request);
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(error.contains(word), "no {word:?} in {reply}");
    }
    assert_eq!(
        client.ask(json!({ "prompt": "hi", "max_tokens": 1 }))["done"],
        true
    );
}

/// Clients that say nothing make room for others, and are told.
#[test]
fn silent_clients_shut_nobody_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut silent: Vec<Client> = (0..32).map(|_| Client::connect(&socket)).collect();
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..3 {
        let mut client = Client::connect(&socket);
        let reply = client.ask(json!({ "prompt": "hi", "max_tokens": 1 }));
        assert_eq!(reply["done"], true, "{reply}");
        std::thread::sleep(Duration::from_millis(150));
    }
    let reply = silent[0].receive();
    assert!(
        reply["error"]
            .as_str()
            .is_some_and(|e| e.contains("disconnected")),
        "{reply}"
    );
}

/// A client that sends nothing, or never finishes, is disconnected in the end.
#[test]
fn slow_clients_are_disconnected() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--idle-timeout", "1"]);
    for start in ["", "{\"prompt\": "] {
        let mut client = Client::connect(&socket);
        write!(client.output, "{start}").expect("the start is sent");
        let reply = client.receive();
        assert!(
            reply["error"]
                .as_str()
                .is_some_and(|e| e.contains("within the time limit")),
            "{reply}"
        );
    }
}

/// A client may close its sending side and still wait for the reply.
#[test]
fn a_client_that_has_finished_sending_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &[]);
    let mut client = Client::connect(&socket);
    client.send(&json!({ "prompt": QUESTION, "images": [image()] }).to_string());
    client
        .output
        .shutdown(std::net::Shutdown::Write)
        .expect("the socket is open");
    assert_eq!(client.receive()["text"], "two");
}

#[test]
fn bad_requests_get_an_error_and_do_not_end_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--no-files"]);
    let mut client = Client::connect(&socket);
    let file = demo("shapes.png");
    let bad: [(String, &str); 9] = [
        ("not JSON".to_owned(), "invalid request"),
        (
            json!({ "id": 7, "question": "?" }).to_string(),
            "unknown field",
        ),
        (json!({ "id": 7, "prompt": 5 }).to_string(), "invalid type"),
        (
            json!({ "id": 7, "prompt": "x", "images": [file] }).to_string(),
            "files are disabled",
        ),
        (
            json!({ "id": 7, "prompt": "x", "images": [{ "base64": "!" }] }).to_string(),
            "invalid base64 in images[0]",
        ),
        (
            json!({ "id": 7, "prompt": "x", "temperature": -1 }).to_string(),
            "temperature",
        ),
        (json!({ "id": 7 }).to_string(), "no \"prompt\""),
        (
            json!({ "id": 7, "prompt": "x", "images": ["data:image/png,x"] }).to_string(),
            "expected data:image/png;base64",
        ),
        (
            json!({ "id": 7, "prompt": "x", "repetition_penalty": 0 }).to_string(),
            "repetition_penalty is 0, expected a number above 0",
        ),
    ];
    for (request, word) in bad {
        client.send(&request);
        let reply = client.receive();
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(error.contains(word), "{request}: {reply}");
        if request.starts_with('{') {
            assert_eq!(reply["id"], 7);
        }
    }
    let reply = client.ask(json!({ "prompt": QUESTION, "images": [image()] }));
    assert_eq!(reply["text"], "two");
}

/// A question's penalty goes before the server's, which goes before the checkpoint's.
#[test]
fn repetition_penalties() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let _server = listen(&socket, &["--repetition-penalty", "8", "--parse-special"]);
    let mut client = Client::connect(&socket);
    let mut tokens = |penalty: Option<f32>| {
        let mut question = json!({
            "prompt": "hello", "max_tokens": 12, "ignore_eos": true, "repetition_penalty": penalty,
        });
        if penalty.is_none() {
            question
                .as_object_mut()
                .expect("an object")
                .remove("repetition_penalty");
        }
        client.ask(question)["tokens"].clone()
    };
    let servers = tokens(None);
    let off = tokens(Some(1.0));
    assert_eq!(tokens(Some(8.0)), servers);
    assert_ne!(off, servers);
    let ids: Vec<_> = servers.as_array().expect("tokens").to_vec();
    let repeats = (1..ids.len()).any(|at| ids[..at].contains(&ids[at]));
    assert!(!repeats, "{servers}");
    // The server lets this placeholder token take effect, but there is no image.
    let reply = client.ask(json!({ "prompt": "<|image_pad|>" }));
    let error = reply["error"].as_str().unwrap_or_default();
    assert!(error.contains("found 1 placeholder tokens"), "{reply}");
}

#[test]
fn a_socket_in_use_is_not_taken_and_a_left_over_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let first = listen(&socket, &[]);
    let mut second = server(&["--socket", socket.to_str().expect("a readable path")]);
    let second = second.output().expect("the command starts");
    let message = String::from_utf8_lossy(&second.stderr);
    assert!(message.contains("a running server"), "{message}");
    drop(first);
    assert!(socket.exists(), "a killed server leaves its socket");
    let _third = listen(&socket, &[]);
}

#[test]
fn systemd_is_told_when_requests_can_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let notify = folder.path().join("notify");
    let receiver = UnixDatagram::bind(&notify).expect("a socket");
    receiver
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    let socket = folder.path().join("socket");
    let mut command = server(&["--socket", socket.to_str().expect("a readable path")]);
    let _server = Running(
        command
            .env("NOTIFY_SOCKET", &notify)
            .spawn()
            .expect("it starts"),
    );
    let mut message = [0; 64];
    let n = receiver.recv(&mut message).expect("a message");
    assert_eq!(message[..n].trim_ascii(), b"READY=1");
    assert!(UnixStream::connect(&socket).is_ok());
}

#[test]
fn standard_input_is_served_until_it_ends() {
    let mut child = server(&[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut input = child.stdin.take().expect("its input");
    let question = json!({ "id": 1, "prompt": QUESTION, "images": [image()] });
    writeln!(input, "{question}\n\n{{\"id\": 2}}x").expect("requests are sent");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let replies: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0]["text"], "two");
    assert!(replies[1]["error"].is_string());
}
