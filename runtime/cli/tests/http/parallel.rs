//! Requests that are answered at the same time.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Server;
use super::rude::{endless, endless_server, wait_for};
use super::{CHAT, QUESTION, hi, question, with};

/// Requests of many kinds.
fn requests() -> Vec<Value> {
    let long = "list the shapes. ".repeat(30);
    let say = |text: &str| json!({ "messages": [{ "role": "user", "content": text }] });
    let mut requests = vec![
        question(QUESTION),
        with(say(&long), json!({ "max_tokens": 60, "ignore_eos": true })),
        with(
            hi(40),
            json!({ "temperature": 1.5, "seed": 5, "ignore_eos": true, "top_p": 0.9 }),
        ),
        with(
            question("list the shapes."),
            json!({ "stop": ["yellow"], "logprobs": true, "top_logprobs": 3 }),
        ),
        with(
            hi(30),
            json!({ "temperature": 1.0, "seed": 6, "frequency_penalty": 0.5, "ignore_eos": true }),
        ),
        with(question("list the shapes."), json!({ "max_tokens": 2 })),
        with(hi(1), json!({})),
    ];
    if cfg!(feature = "constraints") {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["shape"],
            "properties": { "shape": { "enum": ["circle", "cross"] } },
        });
        let form = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
        let tool =
            json!({ "type": "function", "function": { "name": "paint", "parameters": schema } });
        requests.extend([
            with(hi(100), json!({ "response_format": form })),
            with(
                hi(100),
                json!({ "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false }),
            ),
        ]);
    }
    requests
}

/// Returns what must not depend on other requests.
fn outcome(reply: &Value) -> Value {
    let mut choice = reply["choices"][0].clone();
    for call in choice["message"]["tool_calls"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        // Every call has an id of its own.
        call["id"] = Value::Null;
    }
    json!([
        choice,
        reply["usage"]["prompt_tokens"],
        reply["usage"]["completion_tokens"]
    ])
}

/// Whatever is decoded together, answers are those of one request after the other without drafts.
#[test]
fn answers_are_those_of_one_after_the_other() {
    let requests = requests();
    let one = Server::start(&["--speculate", "off"]);
    let expected: Vec<Value> = requests
        .iter()
        .map(|request| outcome(&one.chat(request).json()))
        .collect();
    for options in [
        &["--parallel", "4"][..],
        &["--parallel", "8", "--speculate", "3"],
    ] {
        let server = Server::start(options);
        for _ in 0..3 {
            let found: Vec<Value> = std::thread::scope(|scope| {
                let ask = |request| {
                    let server = &server;
                    scope.spawn(move || server.chat(request).json())
                };
                let threads: Vec<_> = requests.iter().map(ask).collect();
                let replies = threads.into_iter();
                replies
                    .map(|thread| outcome(&thread.join().expect("a reply")))
                    .collect()
            });
            for ((found, expected), request) in found.iter().zip(&expected).zip(&requests) {
                assert_eq!(found, expected, "{options:?}: {request}");
            }
        }
    }
}

/// Two requests are answered, one waits, and a client that hangs up gives its place to it.
#[test]
fn a_client_that_hangs_up_gives_its_place_to_the_next_one() {
    let server = endless_server(&["--parallel", "2", "--queue", "1"]);
    let [mut first, mut second, mut third] = [(); 3].map(|()| server.connect());
    first.post(CHAT, &endless());
    wait_for("answering", 1.into(), &server);
    second.post(CHAT, &endless());
    wait_for("answering", 2.into(), &server);
    third.post(CHAT, &endless());
    wait_for("queue", 1.into(), &server);
    let rejected = server.chat(&hi(1));
    assert_eq!(rejected.status, 429, "{rejected:?}");
    // The one that waits and one of those that are answered end before.
    assert_eq!(rejected.json()["error"]["position"], 2);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("edge_lmm_answering 2\n"), "{metrics}");
    drop(first);
    wait_for("queue", 0.into(), &server);
    wait_for("answering", 2.into(), &server);
    drop((second, third));
    wait_for("answering", 0.into(), &server);
    assert_eq!(server.chat(&question(QUESTION)).text(), "two");
}

/// An image is encoded and a question answered while another answer is streamed and while a client
/// does not read its own.
#[test]
fn requests_begin_while_others_are_answered() {
    let server = endless_server(&["--parallel", "3"]);
    let stream = with(endless(), json!({ "stream": true }));
    let mut endless = server.connect();
    endless.post(CHAT, &stream);
    assert_eq!(endless.head().status, 200);
    let mut deaf = server.connect();
    deaf.post(
        CHAT,
        &with(stream, json!({ "logprobs": true, "top_logprobs": 20 })),
    );
    wait_for("answering", 2.into(), &server);
    for round in 0..3 {
        let start = Instant::now();
        let reply = server.chat(&question(QUESTION));
        assert_eq!(reply.text(), "two");
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{:?}",
            start.elapsed()
        );
        let stages = &reply.json()["edge_lmm"]["timings"];
        let names: Vec<&str> = stages
            .as_array()
            .expect("stages")
            .iter()
            .filter_map(|stage| stage["stage"].as_str())
            .collect();
        assert_eq!(names.contains(&"vision"), round == 0, "{names:?}");
        // The stream goes on.
        endless.input.read_exact(&mut [0; 2000]).expect("text");
    }
}
