//! Fuzz target for requests of the server.

use edge_lmm::media::FrameSelection;
use edge_lmm::serve::{Limits, Question, Reply};
use serde_json::Value;

use crate::mutate::Form;
use crate::{Target, errors};

/// A line of the server, up to the media of its question.
pub const REQUEST: Target = Target {
    name: "request",
    form: Form::Json(&[
        b"data:image/png;base64,",
        b"data:,",
        b"\\u0000",
        b"\\ud800",
        b"[",
        b"{",
        b"}",
        b"\"",
        b":",
        b"\"images\"",
        b"\"base64\"",
        b"\"id\"",
        b"1e999",
        b"-0",
        b"\n",
        b"=",
        b"\xff",
    ]),
    seeds: || {
        const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
        [
            r#"{"id": 1, "prompt": "What is this?", "max_tokens": 64, "stream": true}"#.to_owned(),
            format!(r#"{{"id": "a", "prompt": "b", "images": ["data:image/png;base64,{PNG}"]}}"#),
            format!(r#"{{"id": null, "prompt": "b", "images": [{{"base64": "{PNG}"}}], "system": "c"}}"#),
            r#"{"id": 2, "prompt": "b", "video": "/v.y4m", "audio": "/a.wav", "images": ["/i.png"]}"#.to_owned(),
            r#"{"prompt": "b", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7,
                "repetition_penalty": 1.1, "ignore_eos": true}"#.to_owned(),
        ]
        .map(String::into_bytes)
        .into()
    },
    run: |input| {
        let limits = Limits::new(16, FrameSelection::Uniform(2).into());
        match Question::parse(input) {
            Err(reply) => drop(check_reply(&reply)),
            Ok(question) => {
                let id = question.id.clone();
                let names_files = question.video.is_some() || question.audio.is_some();
                match question.prepare(&limits) {
                    Ok(_) => assert!(!names_files, "files are not allowed"),
                    Err(reply) => assert_eq!(check_reply(&reply), id),
                }
            }
        }
    },
};

/// Checks that a reply is one short line of JSON with an error. Returns its id.
fn check_reply(reply: &Reply) -> Value {
    let line = reply.line();
    let json: Value = serde_json::from_str(&line).expect("JSON");
    assert!(!line.contains('\n'), "several lines: {line:?}");
    errors::check_line(json["error"].as_str().expect("an error"));
    let id = json["id"].clone();
    assert!(id.is_null() || id.is_number() || id.as_str().is_some_and(|id| id.len() <= 256));
    id
}
