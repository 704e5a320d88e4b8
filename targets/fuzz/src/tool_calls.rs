//! Fuzz target for calls of functions in answers.

use edge_lmm::{AnswerPart, ToolCalls, ToolSyntax};

use crate::Target;
use crate::mutate::Form;

/// The text of an answer. The parts do not depend on the pieces in which it is generated.
pub const TOOL_CALLS: Target = Target {
    name: "tool_calls",
    form: Form::Words(&[
        b"<tool_call>",
        b"</tool_call>",
        b"\n",
        b" ",
        b"{\"name\": \"f\", \"arguments\": {}}",
        b"{\"name\": \"f\", \"arguments\": \"{}\"}",
        b"{\"a\": \"",
        b"\\",
        b"\"",
        b"}",
        b"[",
        b"\xf0\x9f\xa6\x80",
    ]),
    seeds: || {
        [
            "One moment.\n<tool_call>\n{\"name\": \"count\", \"arguments\": {\"a\": [1]}}\n</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call> <tool_call>{",
            "a < b <tool_call>no call</tool_call> <tool_call>{\"name\": \"f\"}</tool_call>\n\nc",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    },
    run: |input| {
        let text = String::from_utf8_lossy(input);
        let whole = answer_parts(&text, usize::MAX);
        for size in [1, 7] {
            assert_eq!(
                answer_parts(&text, size),
                whole,
                "pieces of {size} characters"
            );
        }
    },
};

/// Returns the parts of a text that comes in pieces of `size` characters, with neighboring texts
/// joined.
fn answer_parts(text: &str, size: usize) -> Vec<AnswerPart> {
    let mut calls = ToolCalls::new(&ToolSyntax::default());
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .char_indices()
            .nth(size)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, left) = rest.split_at(end);
        found.extend(calls.push(piece));
        rest = left;
    }
    found.extend(calls.finish());
    let mut joined: Vec<AnswerPart> = Vec::new();
    for part in found {
        match (joined.last_mut(), part) {
            (Some(AnswerPart::Text(text)), AnswerPart::Text(more)) => text.push_str(&more),
            (_, part) => joined.push(part),
        }
    }
    joined
}
