//! The server over HTTP: OpenAI's interface.

#![cfg(all(unix, feature = "http"))]

mod addresses;
mod client;
mod forms;
mod parallel;
mod rude;

use std::path::Path;
use std::sync::Arc;

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, write_record};
use serde_json::{Value, json};

use client::{Server, demo};

const QUESTION: &str = "how many shapes are there?";
const CHAT: &str = "/v1/chat/completions";

/// The demo's image as a `data:` URL.
fn image() -> Value {
    let bytes = std::fs::read(demo("shapes.png")).expect("the image");
    let text = data_encoding::BASE64.encode(&bytes);
    json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{text}") } })
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// A question about the demo's image.
fn question(question: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": [image(), text(question)] }] })
}

/// A question without an image.
fn hi(max_tokens: usize) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": max_tokens })
}

/// Adds fields to a request.
fn with(mut request: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().expect("fields") {
        request[key] = value.clone();
    }
    request
}

#[test]
fn questions_about_images_are_answered() {
    let server = Server::start(&[]);
    let reply = server.chat(&with(
        question(QUESTION),
        json!({ "model": "qwen2vl-tiny" }),
    ));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.text(), "two");
    let json = reply.json();
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    let usage = &json["usage"];
    let count = |key: &str| usage[key].as_u64().expect("a number");
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert_eq!(json["edge_lmm"]["visual_tokens"], 16);
    let stages = json["edge_lmm"]["timings"].as_array().expect("stages");
    let names: Vec<&Value> = stages.iter().map(|stage| &stage["stage"]).collect();
    for stage in ["media", "vision", "prefill", "decode"] {
        assert!(names.contains(&&json!(stage)), "no {stage} in {names:?}");
    }
    assert!(stages.iter().all(|stage| stage["ms"].as_f64() >= Some(0.0)));
    assert!(reply.header("x-request-id").is_some());
}

/// Each turn sends the conversation so far; only the new turn is computed.
#[test]
fn conversations_are_continued() {
    let server = Server::start(&[]);
    let mut request = question(QUESTION);
    let first = server.chat(&request);
    let messages = request["messages"].as_array_mut().expect("messages");
    messages.push(json!({ "role": "assistant", "content": first.text() }));
    messages.push(json!({ "role": "user", "content": [text("list the shapes.")] }));
    let second = server.chat(&request).json();
    let usage = &second["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(
        cached >= first.json()["usage"]["prompt_tokens"].as_u64(),
        "{usage}"
    );
    assert_eq!(second["edge_lmm"]["cache"], "memory");
    let stages = second["edge_lmm"]["timings"].as_array().expect("stages");
    assert!(stages.iter().all(|stage| stage["stage"] != "vision"));
}

#[test]
fn streams_give_the_same_text() {
    let server = Server::start(&[]);
    let fields = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let reply = server.chat(&with(question("list the shapes."), fields));
    let events = reply.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let delta = |event: &Value| {
        let text = event["choices"][0]["delta"]["content"].as_str();
        text.unwrap_or_default().to_owned()
    };
    let text: String = events.iter().map(delta).collect();
    assert_eq!(text, "blue square, yellow cross");
    let [.., last, usage] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(last["edge_lmm"]["timings"].is_array());
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64() > Some(3));
    let ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

/// The extension for pages: a stream that begins at once and reports every stage.
#[test]
fn streams_can_report_progress() {
    let server = Server::start(&[]);
    let fields = json!({ "stream": true, "edge_lmm": { "progress": true } });
    let events = server.chat(&with(question(QUESTION), fields)).events();
    let progress: Vec<&Value> = events
        .iter()
        .map(|event| &event["edge_lmm"]["progress"])
        .filter(|progress| !progress.is_null())
        .collect();
    assert_eq!(progress[0]["queue"], 0);
    for stage in ["vision", "prefill", "decode"] {
        let mut of_stage = progress.iter().filter(|p| p["stage"] == stage);
        assert!(of_stage.all(|p| p["done"].as_u64() <= p["total"].as_u64()));
        assert!(progress.iter().any(|p| p["stage"] == stage), "no {stage}");
    }
}

#[test]
fn texts_are_continued() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "list the", "max_tokens": 4, "logprobs": 2 });
    let reply = server.post("/v1/completions", &body).json();
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["usage"]["completion_tokens"], 4);
    // Without the chat template, the prompt is its own tokens.
    assert!(
        reply["usage"]["prompt_tokens"].as_u64() <= Some(10),
        "{reply}"
    );
    let logprobs = &reply["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(
            logprobs[list].as_array().map(Vec::len),
            Some(4),
            "{logprobs}"
        );
    }
    let mut body = json!({ "prompt": ["list the"], "max_tokens": 4, "stream": true });
    let events = server.post("/v1/completions", &body).events();
    let texts = events
        .iter()
        .map(|event| event["choices"][0]["text"].as_str());
    let text: String = texts.map(|text| text.expect("a text")).collect();
    assert_eq!(text, reply["choices"][0]["text"]);
    body["stop"] = json!([&text[1..]]);
    body["stream"] = json!(false);
    let stopped = server.post("/v1/completions", &body).json();
    assert_eq!(stopped["choices"][0]["text"], text[..1]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

/// The probabilities of all tokens of a position add up to at most 1, and the greedy token is the
/// most likely one.
#[test]
fn log_probabilities_are_reported() {
    let server = Server::start(&[]);
    let fields = json!({ "logprobs": true, "top_logprobs": 20 });
    let request = with(question("list the shapes."), fields);
    let whole = server.chat(&request).json();
    let content = whole["choices"][0]["logprobs"]["content"].clone();
    let tokens = content.as_array().expect("tokens");
    assert_eq!(
        whole["usage"]["completion_tokens"].as_u64(),
        Some(tokens.len() as u64)
    );
    for token in tokens {
        let top = token["top_logprobs"].as_array().expect("alternatives");
        assert_eq!(top.len(), 20);
        assert_eq!(top[0]["logprob"], token["logprob"]);
        let total: f64 = top
            .iter()
            .filter_map(|t| t["logprob"].as_f64())
            .map(f64::exp)
            .sum();
        assert!(total > 0.1 && total < 1.0001, "{total}");
    }
    let bytes = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes"));
    let bytes: Vec<u8> = bytes
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    let spelled = String::from_utf8(bytes).expect("UTF-8");
    let answer = whole["choices"][0]["message"]["content"].as_str();
    assert!(spelled.starts_with(answer.expect("a text")), "{spelled:?}");
    let events = server
        .chat(&with(request, json!({ "stream": true })))
        .events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed.len(), tokens.len());
}

#[test]
fn seeds_repeat_answers() {
    let server = Server::start(&[]);
    let sample = |seed: Option<i64>| {
        let fields = json!({ "temperature": 1.5, "top_p": 0.99, "top_k": 50, "seed": seed,
            "presence_penalty": 0.1, "frequency_penalty": 0.1 });
        server.chat(&with(hi(24), fields)).text()
    };
    assert_eq!(sample(Some(-7)), sample(Some(-7)));
    let mut others = (0..6).map(|_| sample(None));
    let first = others.next();
    assert!(others.any(|other| Some(other) != first));
}

#[test]
fn sounds_and_videos_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let record = folder.path().join("tiny audio.bpk");
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tests/data/qwen2audio-tiny");
    let checkpoint = Checkpoint::open(&source, None).expect("a checkpoint");
    let plan = Plan::new(&checkpoint, &Options::default()).expect("a plan");
    write_record(&plan, Arc::new(checkpoint), &record, |_, _| {}).expect("a record");
    let server = Server::with_model(&record, &[]);
    let wav = data_encoding::BASE64.encode(&wav());
    let file = format!("data:audio/wav;base64,{wav}");
    for part in [
        json!({ "type": "input_audio", "input_audio": { "data": wav, "format": "wav" } }),
        json!({ "type": "file", "file": { "file_data": file, "filename": "a.wav" } }),
        json!({ "type": "file", "file": { "file_data": wav } }),
    ] {
        let content = [part, text("what is heard?")];
        let request = json!({ "messages": [{ "role": "user", "content": content }],
            "max_tokens": 3 });
        let reply = server.chat(&request);
        assert_eq!(reply.status, 200, "{reply:?}");
        let json = reply.json();
        assert!(
            json["edge_lmm"]["visual_tokens"].as_u64() > Some(0),
            "{json}"
        );
        assert_eq!(json["model"], "tiny audio");
    }
    let video = data_encoding::BASE64.encode(&y4m());
    let url = format!("data:video/x-y4m;base64,{video}");
    let content = [
        json!({ "type": "video_url", "video_url": { "url": url } }),
        text("?"),
    ];
    let request = json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 3 });
    let refused = server.chat(&request);
    assert_eq!(refused.status, 400, "{refused:?}");
    let answered = Server::start(&[]).chat(&request);
    assert_eq!(answered.status, 200, "{answered:?}");
}

/// Half a second of a tone.
fn wav() -> Vec<u8> {
    let samples = (0..8000).map(|i| ((f64::from(i) * 0.2).sin() * 8000.0) as i16);
    let data: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
    let length = data.len() as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + length).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend(length.to_le_bytes());
    file.extend(data);
    file
}

/// A video of four gray frames.
fn y4m() -> Vec<u8> {
    let mut video = b"YUV4MPEG2 W56 H56 F2:1 Cmono\n".to_vec();
    for gray in [10, 80, 150, 220] {
        video.extend(b"FRAME\n");
        video.extend([gray; 56 * 56]);
    }
    video
}

/// Every mistake has a status and names its field.
#[test]
fn mistakes_are_named() {
    let server = Server::start(&[]);
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let part = |kind: &str, url: &str| user(json!([{ "type": kind, kind: { "url": url } }]));
    let place = "messages[0].content[0]";
    for (body, status, code, param) in [
        (json!({}), 400, "invalid_value", Some("messages")),
        (
            json!({ "messages": [] }),
            400,
            "invalid_value",
            Some("messages"),
        ),
        (json!([1]), 400, "invalid_json", None),
        (json!({ "messages": "hi" }), 400, "invalid_json", None),
        (
            with(hi(1), json!({ "temperature": "x" })),
            400,
            "invalid_json",
            None,
        ),
        (
            with(hi(1), json!({ "temperature": -1 })),
            400,
            "invalid_value",
            Some("temperature"),
        ),
        (
            with(hi(1), json!({ "top_p": 2 })),
            400,
            "invalid_value",
            Some("top_p"),
        ),
        (
            with(hi(1), json!({ "n": 2 })),
            400,
            "unsupported_parameter",
            Some("n"),
        ),
        (
            with(hi(1), json!({ "logprobs": 3 })),
            400,
            "invalid_value",
            Some("logprobs"),
        ),
        (
            with(hi(1), json!({ "top_logprobs": 3 })),
            400,
            "invalid_value",
            Some("top_logprobs"),
        ),
        (
            with(hi(1), json!({ "logprobs": true, "top_logprobs": 21 })),
            400,
            "invalid_value",
            Some("top_logprobs"),
        ),
        (
            with(hi(1), json!({ "logit_bias": { "5": 1 } })),
            400,
            "unsupported_parameter",
            Some("logit_bias"),
        ),
        (
            with(hi(1), json!({ "model": "gpt-4o" })),
            404,
            "model_not_found",
            Some("model"),
        ),
        (
            with(hi(1), json!({ "stop": vec!["a"; 17] })),
            400,
            "invalid_value",
            Some("stop"),
        ),
        (
            json!({ "messages": [{ "role": "judge", "content": "" }] }),
            400,
            "invalid_value",
            Some("messages[0].role"),
        ),
        (
            user(json!([{ "type": "poem" }])),
            400,
            "invalid_value",
            Some(place),
        ),
        (
            user(json!([{ "type": "text" }])),
            400,
            "invalid_value",
            Some(place),
        ),
        (user(json!(["text"])), 400, "invalid_json", None),
        (
            part("image_url", "https://example.com/a.png"),
            400,
            "address_refused",
            Some(place),
        ),
        (
            part("image_url", "data:image/png,abc"),
            400,
            "invalid_value",
            Some(place),
        ),
        (
            part("image_url", "data:image/png;base64,@@"),
            400,
            "invalid_value",
            Some(place),
        ),
        (
            part("image_url", "data:image/png;base64,AAAA"),
            400,
            "invalid_value",
            Some(place),
        ),
        (
            json!({ "messages": [{ "role": "system", "content": [image()] }] }),
            400,
            "invalid_value",
            Some(place),
        ),
        (
            user(json!("word ".repeat(40_000))),
            400,
            "context_length_exceeded",
            None,
        ),
    ] {
        let reply = server.chat(&body);
        let error = &reply.json()["error"];
        let shown: String = body.to_string().chars().take(100).collect();
        assert_eq!(reply.status, status, "{shown}: {reply:?}");
        assert_eq!(error["code"], code, "{shown}: {error}");
        assert_eq!(error["param"].as_str(), param, "{shown}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(
            !message.is_empty() && !message.contains('\n'),
            "{message:?}"
        );
        // A stream that fails before its first text has a status as well.
        if body.is_object() {
            let streamed = server.chat(&with(body, json!({ "stream": true })));
            assert_eq!(streamed.status, status, "{streamed:?}");
        }
    }
    for (method, path, status) in [
        ("GET", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/qwen2vl-tiny", 200),
        ("POST", CHAT, 415),
    ] {
        let mut client = server.connect();
        let body: &[u8] = if status == 415 { b"{}" } else { b"" };
        client.send(method, path, &[("content-type", "text/plain")], body);
        assert_eq!(client.receive().status, status, "{method} {path}");
    }
}

#[test]
fn a_key_is_required_where_one_is_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    std::fs::write(&key, "sesame\n").expect("a file");
    let server = Server::start(&["--api-key-file", key.to_str().expect("a path")]);
    let status = |path: &str, key: Option<&str>| {
        let mut client = server.connect();
        let value = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<(&str, &str)> = value.iter().map(|v| ("authorization", &v[..])).collect();
        client.send("GET", path, &headers, b"");
        client.receive().status
    };
    for path in ["/v1/models", "/metrics"] {
        assert_eq!(status(path, None), 401, "{path}");
        assert_eq!(status(path, Some("Sesame")), 401, "{path}");
        assert_eq!(status(path, Some("sesame")), 200, "{path}");
    }
    assert_eq!(status("/health", None), 200);
    let reply = server.chat(&hi(1));
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    assert_eq!(reply.json()["error"]["type"], "authentication_error");
}

/// The page is one file, and the browser is told to load and run nothing else.
#[test]
fn browsers_get_a_page() {
    let server = Server::start(&["--api-key", "sesame"]);
    let reply = server.get("/");
    assert_eq!(
        reply.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = reply.header("content-security-policy").expect("a policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'nonce-"),
        "{policy}"
    );
    let nonce = policy
        .split("'nonce-")
        .nth(1)
        .and_then(|rest| rest.split('\'').next());
    let nonce = nonce.expect("a number");
    assert_eq!(reply.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!reply.body.contains("{{"), "a place is not filled");
    let other = server.get("/");
    let other = other
        .header("content-security-policy")
        .expect("a policy")
        .to_owned();
    assert!(!other.contains(nonce));
}

/// A web page whose name points to this machine cannot use the server.
#[test]
fn foreign_names_are_rejected() {
    let server = Server::start(&["--allow-host", "lab.example"]);
    for (host, status) in [
        ("evil.example", 421),
        ("lab.example", 200),
        ("10.0.0.1", 200),
    ] {
        let mut client = server.connect();
        client.send("GET", "/v1/models", &[("host", host)], b"");
        assert_eq!(client.receive().status, status, "{host}");
    }
}

#[test]
fn counters_follow_the_answers() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for _ in 0..2 {
        client.post(CHAT, &question(QUESTION));
        assert_eq!(client.receive().status, 200);
    }
    client.send("GET", "/metrics", &[("x-request-id", "mine-1")], b"");
    let reply = client.receive();
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    for line in [
        "edge_lmm_answers_total{finish_reason=\"stop\"} 2",
        "edge_lmm_stage_seconds_count{stage=\"vision\"} 1",
        "edge_lmm_stage_seconds_count{stage=\"prefill\"} 2",
        "edge_lmm_visual_tokens_total 32",
        "edge_lmm_queue_length 0",
        "edge_lmm_http_replies_total{path=\"/v1/chat/completions\",status=\"200\"} 2",
    ] {
        let found = reply.body.lines().any(|found| found == line);
        assert!(found, "no {line} in\n{}", reply.body);
    }
    let health = server.get("/health").json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["answering"], 0);
}

/// Both protocols share the engine and the states of conversations.
#[test]
fn the_socket_is_served_as_well() {
    use std::io::{BufRead, BufReader, Write};
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let config = folder.path().join("serve.toml");
    std::fs::write(
        &config,
        format!("socket = {socket:?}\nmodel-name = 'eyes'\n"),
    )
    .expect("a file");
    let server = Server::start(&["--config", config.to_str().expect("a path")]);
    assert_eq!(server.chat(&question(QUESTION)).text(), "two");
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "eyes");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("a connection");
    let url = &image()["image_url"]["url"];
    writeln!(stream, "{}", json!({ "prompt": QUESTION, "images": [url] })).expect("sent");
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("a reply");
    let reply: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(reply["text"], "two");
    assert!(reply["reused_tokens"].as_u64() > Some(16), "{reply}");
}
