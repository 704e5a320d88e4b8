//! Fuzz target for bodies of requests over HTTP.

use edge_lmm::media::FrameSelection;
use edge_lmm::serve::Limits;
use edge_lmm::serve::openai::{ApiError, Ask, Endpoint};
use serde_json::{Value, json};

use crate::mutate::Form;
use crate::{Target, errors};

/// A body of `/v1/chat/completions` and of `/v1/completions`, up to its media.
pub const HTTP_REQUEST: Target = Target {
    name: "http_request",
    form: Form::Json(&[
        b"data:image/png;base64,",
        b"data:audio/wav;base64,",
        b"data:video/mp4;base64,",
        b"file:///etc/passwd",
        b"\"type\"",
        b"\"text\"",
        b"\"image_url\"",
        b"\"input_audio\"",
        b"\"video_url\"",
        b"\"file\"",
        b"\"role\"",
        b"\"content\"",
        b"\"tool_calls\"",
        b"\"json_schema\"",
        b"\"grammar\"",
        b"null",
        b"\\u0000",
        b"\\ud800",
        b"[",
        b"{",
        b"1e999",
        b"-1",
        b"\xff",
    ]),
    seeds: || {
        const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
        let image = format!("data:image/png;base64,{PNG}");
        let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
        let seeds = [
            json!({ "model": "m", "stream": true, "stream_options": { "include_usage": true },
                "messages": [{ "role": "system", "content": "s" }, { "role": "user", "content": "q" },
                    { "role": "assistant", "content": null }, { "role": "user", "content": [] }] }),
            user(json!([{ "type": "text", "text": "a" },
                { "type": "image_url", "image_url": { "url": image, "detail": "low" } }])),
            user(json!([{ "type": "file", "file": { "file_data": PNG, "filename": "a.png" } }])),
            user(
                json!([{ "type": "input_audio", "input_audio": { "data": "AAAA", "format": "wav" } },
                { "type": "video_url", "video_url": "https://example.com/v.mp4" }]),
            ),
            json!({ "prompt": ["text"], "max_tokens": 5, "stop": ["a", "b"], "logprobs": 3, "seed": -1,
                "temperature": 0.5, "top_p": 0.9, "top_k": -1, "presence_penalty": 1, "n": 1 }),
            json!({ "messages": [{ "role": "user", "content": "q" }], "logprobs": true,
                "top_logprobs": 5, "tools": [], "response_format": { "type": "text" },
                "edge_lmm": { "progress": true }, "logit_bias": {} }),
            json!({ "messages": [{ "role": "user", "content": "q" }, { "role": "assistant", "content": null,
                    "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
                    { "role": "tool", "tool_call_id": "1", "content": "r" }],
                "tools": [{ "type": "function", "function": { "name": "f", "description": "d",
                    "parameters": { "type": "object", "properties": { "a": { "type": "integer" } } } } }],
                "tool_choice": { "type": "function", "function": { "name": "f" } },
                "parallel_tool_calls": false }),
            json!({ "messages": [{ "role": "user", "content": "q" }], "stream": true,
                "response_format": { "type": "json_schema", "json_schema": { "name": "n", "strict": true,
                    "schema": { "type": "object", "required": ["a"] } } } }),
            json!({ "prompt": "a", "response_format": { "type": "regex", "pattern": "a|b" } }),
        ];
        seeds.map(|seed| seed.to_string().into_bytes()).into()
    },
    run: |input| {
        let limits = Limits {
            files: true,
            ..Limits::new(16, FrameSelection::Uniform(2).into())
        };
        for endpoint in [Endpoint::Chat, Endpoint::Completion] {
            let asked = Ask::parse(endpoint, input, &limits);
            if let Err(error) = asked.and_then(|ask| ask.prepare(&limits)) {
                check(&error);
            }
        }
    },
};

/// Checks that a reply blames the client, on one line of limited length.
fn check(error: &ApiError) {
    assert!((400..500).contains(&error.status), "{error:?}");
    let body = error.body();
    errors::check_line(body["error"]["message"].as_str().expect("a message"));
    let param = error.param.as_deref().unwrap_or_default();
    assert!(param.len() <= 100, "{param:?}");
}
