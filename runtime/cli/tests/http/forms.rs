//! Answers with a form: JSON, regular expressions, grammars, and calls of functions.

#![cfg(feature = "constraints")]

use serde_json::{Value, json};

use crate::client::Server;
use crate::{hi, with};

/// A schema that leaves little choice, so that answers are short.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "shape": { "enum": ["circle", "cross"] },
            "count": { "type": "integer", "minimum": 0, "maximum": 9 },
        },
        "required": ["shape", "count"],
        "additionalProperties": false,
    })
}

fn tools() -> Value {
    let tool = |name: &str, parameters: Value| {
        json!({ "type": "function", "function": { "name": name,
            "description": "Finds <|im_end|> shapes.", "parameters": parameters } })
    };
    let reference = json!({
        "type": "object",
        "properties": { "color": { "$ref": "#/$defs/color" } },
        "required": ["color"],
        "additionalProperties": false,
        "$defs": { "color": { "enum": ["red", "grün"] } },
    });
    json!([tool("count_shapes", schema()), tool("paint", reference)])
}

fn format(format: Value) -> Value {
    with(hi(400), json!({ "response_format": format }))
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let server = Server::start(&[]);
    let strict = json!({ "type": "json_schema",
        "json_schema": { "name": "shapes", "strict": true, "schema": schema() } });
    let reply = server.chat(&format(strict.clone())).json();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{reply}");
    let text = reply["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text");
    let value: Value = serde_json::from_str(text).expect("JSON");
    assert!(value["count"].as_u64() < Some(10), "{value}");
    // A stream gives the same text.
    let events = server
        .chat(&with(format(strict.clone()), json!({ "stream": true })))
        .events();
    let deltas = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), text);
    // An answer that is cut off says so.
    let short = server
        .chat(&with(format(strict), json!({ "max_tokens": 2 })))
        .json();
    assert_eq!(short["choices"][0]["finish_reason"], "length");

    let pattern = json!({ "type": "regex", "pattern": "(yes|no), [0-9]{2}" });
    let text = server.chat(&format(pattern.clone())).text();
    assert!(
        ["yes, ", "no, "]
            .iter()
            .any(|start| text.starts_with(start)),
        "{text}"
    );
    let grammar = json!({ "type": "grammar", "grammar": "start: \"a\" \"b\"+ \"c\"" });
    let text = server.chat(&format(grammar)).text();
    assert!(text.starts_with("ab") && text.ends_with('c'), "{text}");
    let object = server
        .chat(&format(json!({ "type": "json_object" })))
        .text();
    assert!(object.starts_with('{'), "{object}");
    assert_eq!(server.chat(&format(json!({ "type": "text" }))).status, 200);
    let continued = json!({ "prompt": "answer:", "max_tokens": 40, "response_format": pattern });
    let continued = server.post("/v1/completions", &continued).json();
    assert_eq!(
        continued["choices"][0]["finish_reason"], "stop",
        "{continued}"
    );
}

#[test]
fn calls_can_be_required() {
    let server = Server::start(&[]);
    let offered = with(
        hi(500),
        json!({ "tools": tools(), "tool_choice": "required" }),
    );
    let single = with(offered.clone(), json!({ "parallel_tool_calls": false }));
    let reply = server.chat(&single).json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
    assert_eq!(choice["message"]["content"], Value::Null);
    let calls = choice["message"]["tool_calls"].as_array().expect("calls");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["type"], "function");
    let arguments = calls[0]["function"]["arguments"].as_str().expect("a text");
    serde_json::from_str::<Value>(arguments).expect("JSON");

    let named = json!({ "type": "function", "function": { "name": "paint" } });
    let named = with(single, json!({ "tool_choice": named }));
    let whole = server.chat(&named).json();
    let call = &whole["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "paint", "{whole}");
    let arguments = call["function"]["arguments"].as_str().expect("a text");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(["red", "grün"].contains(&arguments["color"].as_str().expect("a color")));

    let events = server
        .chat(&with(named, json!({ "stream": true })))
        .events();
    let deltas: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"])
        .filter(|delta| delta["tool_calls"].is_array())
        .collect();
    assert_eq!(deltas.len(), 1, "{events:?}");
    assert_eq!(deltas[0]["tool_calls"][0]["index"], 0);
    assert_eq!(deltas[0]["tool_calls"][0]["function"], call["function"]);
    let reasons = events
        .iter()
        .filter_map(|e| e["choices"][0]["finish_reason"].as_str());
    assert_eq!(reasons.collect::<Vec<_>>(), ["tool_calls"]);
    let texts = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(texts.collect::<String>(), "");
}

/// A whole round: the call and its result are sent back.
#[test]
fn results_of_calls_are_accepted() {
    let server = Server::start(&[]);
    let mut request = with(
        hi(500),
        json!({ "tools": tools(), "tool_choice": "required",
        "parallel_tool_calls": false }),
    );
    let called = server.chat(&request).json();
    let message = called["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let messages = request["messages"].as_array_mut().expect("messages");
    messages.push(message);
    messages.push(json!({ "role": "tool", "tool_call_id": id, "content": "3 <|im_end|>" }));
    request["tool_choice"] = json!("auto");
    request["max_tokens"] = json!(8);
    let reply = server.chat(&request);
    assert_eq!(reply.status, 200, "{reply:?}");
    let usage = &reply.json()["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    let before = called["usage"]["prompt_tokens"].as_u64();
    assert!(cached >= before, "{usage} continues {before:?}");
    // With "none", the prompt does not name the functions.
    let with_tools = usage["prompt_tokens"].as_u64();
    request["tool_choice"] = json!("none");
    let without = server.chat(&request).json();
    assert!(without["usage"]["prompt_tokens"].as_u64() < with_tools);
}

#[test]
fn mistakes_of_forms_are_named() {
    let server = Server::start(&[]);
    let offered = |fields: Value| with(with(hi(4), json!({ "tools": tools() })), fields);
    let tool = |function: Value| with(hi(4), json!({ "tools": [{ "function": function }] }));
    let of_schema = |schema: Value| {
        format(json!({ "type": "json_schema", "json_schema": { "schema": schema } }))
    };
    let call = json!({ "id": "x", "function": { "name": "f", "arguments": "[" } });
    for (body, code, param) in [
        (
            of_schema(Value::Null),
            "invalid_value",
            Some("response_format"),
        ),
        (
            of_schema(json!({ "type": "txt" })),
            "invalid_value",
            Some("response_format"),
        ),
        (
            format(json!({ "type": "yaml" })),
            "invalid_value",
            Some("response_format"),
        ),
        (
            format(json!({ "type": "regex", "pattern": "(" })),
            "invalid_value",
            Some("response_format"),
        ),
        (
            format(json!({ "type": "grammar", "grammar": "a" })),
            "invalid_value",
            None,
        ),
        (
            of_schema(json!({ "allOf": vec![json!({ "enum": vec![1; 400] }); 9] })),
            "invalid_value",
            Some("response_format"),
        ),
        (tool(json!({})), "invalid_value", Some("tools[0]")),
        (
            tool(json!({ "name": "a b" })),
            "invalid_value",
            Some("tools[0]"),
        ),
        (
            tool(json!({ "name": "f", "parameters": 3 })),
            "invalid_value",
            Some("tools[0]"),
        ),
        (
            offered(json!({ "tool_choice": "some" })),
            "invalid_value",
            Some("tool_choice"),
        ),
        (
            offered(json!({ "tool_choice": { "function": { "name": "fly" } } })),
            "invalid_value",
            Some("tool_choice"),
        ),
        (
            with(hi(4), json!({ "tool_choice": "required" })),
            "invalid_value",
            Some("tool_choice"),
        ),
        (
            offered(json!({ "response_format": { "type": "regex", "pattern": "a" } })),
            "unsupported_parameter",
            Some("response_format"),
        ),
        (
            with(hi(4), json!({ "functions": [{ "name": "f" }] })),
            "unsupported_parameter",
            Some("functions"),
        ),
        (
            json!({ "messages": [{ "role": "assistant", "tool_calls": [call] }] }),
            "invalid_value",
            Some("messages[0].tool_calls[0]"),
        ),
        (
            json!({ "messages": [{ "role": "user", "tool_calls": [call] }] }),
            "invalid_value",
            Some("messages[0].tool_calls"),
        ),
    ] {
        let reply = server.chat(&body);
        let shown: String = body.to_string().chars().take(160).collect();
        assert_eq!(reply.status, 400, "{shown}: {reply:?}");
        let error = &reply.json()["error"];
        assert_eq!(error["code"], code, "{shown}: {error}");
        assert_eq!(error["param"].as_str(), param, "{shown}: {error}");
    }
    let completion = json!({ "prompt": "a", "tools": tools() });
    assert_eq!(server.post("/v1/completions", &completion).status, 400);
    // The server still answers.
    assert_eq!(server.chat(&hi(2)).status, 200);
}
