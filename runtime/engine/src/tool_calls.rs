//! Calls of functions in the text of an answer.

#[cfg(feature = "http")]
use edge_lmm_models::prompt::Tool;
use edge_lmm_models::prompt::{ToolCall, ToolSyntax};
use serde_json::{Map, Value, json};

#[cfg(feature = "http")]
use crate::constraint::{Constraint, with_whitespace};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text.
    Text(String),
    /// A call of a function.
    Call(ToolCall),
}

/// Separates calls of functions from the text of an answer while it is generated.
///
/// ```
/// use edge_lmm::{AnswerPart, ToolCalls, ToolSyntax};
///
/// let mut calls = ToolCalls::new(&ToolSyntax::default());
/// let mut parts = calls.push("One moment. <tool_");
/// parts.extend(calls.push("call>\n{\"name\": \"count\", \"arguments\": {}}\n</tool_call>"));
/// parts.extend(calls.finish());
/// assert_eq!(parts[0], AnswerPart::Text("One moment.".to_owned()));
/// assert!(matches!(&parts[1], AnswerPart::Call(call) if call.name == "count"));
/// ```
#[derive(Debug, Clone)]
pub struct ToolCalls {
    open: String,
    close: String,
    arguments: String,
    /// Text that is not complete yet: a possible marker with the blanks before it, or a call.
    held: String,
    in_call: bool,
    /// Bytes of the held call without a marker that ends it: those before cannot become one.
    searched: usize,
}

impl ToolCalls {
    /// Creates a parser of calls in the form of a model ([`Engine::tool_syntax`](crate::Engine::tool_syntax)).
    pub fn new(syntax: &ToolSyntax) -> Self {
        Self {
            open: syntax.open.trim().to_owned(),
            close: syntax.close.trim().to_owned(),
            arguments: syntax.arguments.clone(),
            held: String::new(),
            in_call: false,
            searched: 0,
        }
    }

    /// Adds text and returns the parts that are now complete.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            match self.in_call {
                false => match self.find_open() {
                    Some(at) => {
                        add_text(&mut parts, self.held[..at].trim_end());
                        self.held.drain(..at + self.open.len());
                        self.in_call = true;
                        self.searched = 0;
                    }
                    None => {
                        let settled = self.settled();
                        add_text(&mut parts, &self.held[..settled]);
                        self.held.drain(..settled);
                        return parts;
                    }
                },
                true => match self.complete_call() {
                    Some((call, end)) => {
                        parts.push(AnswerPart::Call(call));
                        self.held.drain(..end);
                        self.in_call = false;
                    }
                    None => return parts,
                },
            }
        }
    }

    /// Returns the parts that are left. A call without its end counts if its JSON is complete;
    /// otherwise it is text, like one that is no JSON.
    pub fn finish(mut self) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        while self.in_call {
            self.in_call = false;
            if let Some(call) = self.call(&self.held) {
                parts.push(AnswerPart::Call(call));
                return parts;
            }
            // Not a call up to its end; calls may follow.
            let marker = self.held.find(&self.close);
            let end = marker.map_or(self.held.len(), |at| at + self.close.len());
            let rest = self.held.split_off(end);
            add_text(&mut parts, &format!("{}{}", self.open, self.held));
            self.held.clear();
            parts.extend(self.push(&rest));
        }
        add_text(&mut parts, &self.held);
        parts
    }

    /// Returns the place of a call in the held text. Without markers, there are no calls.
    fn find_open(&self) -> Option<usize> {
        let has_markers = !self.open.is_empty() && !self.close.is_empty();
        has_markers.then(|| self.held.find(&self.open)).flatten()
    }

    /// Returns the bytes of the held text that can be no part of a marker, nor blanks before one.
    fn settled(&self) -> usize {
        let held = &self.held;
        let starts = held.char_indices().map(|(at, _)| at);
        let partial = starts
            .skip_while(|at| held.len() - at >= self.open.len())
            .find(|&at| self.open.starts_with(&held[at..]));
        held[..partial.unwrap_or(held.len())].trim_end().len()
    }

    /// Returns the call that the held text begins with, and the end of its marker. The marker may
    /// occur in the arguments. Each marker is tried once, or an answer of many markers would take time
    /// in proportion to the square of their number.
    fn complete_call(&mut self) -> Option<(ToolCall, usize)> {
        while let Some(at) = self.held[self.searched..].find(&self.close) {
            let end = self.searched + at;
            if let Some(call) = self.call(&self.held[..end]) {
                return Some((call, end + self.close.len()));
            }
            self.searched = end + self.close.len();
        }
        // The end of the text may be the start of a marker.
        let kept = self.close.len().saturating_sub(1);
        let searched = self.held.len().saturating_sub(kept);
        self.searched = self.searched.max(self.held.floor_char_boundary(searched));
        None
    }

    /// Parses a call.
    fn call(&self, text: &str) -> Option<ToolCall> {
        let mut object: Map<String, Value> = serde_json::from_str(text).ok()?;
        let name = object.get("name")?.as_str()?.to_owned();
        let arguments = match object.remove(&self.arguments) {
            None | Some(Value::Null) => json!({}),
            // Some models write the arguments as a text of JSON.
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            Some(value) => value,
        };
        let is_call = arguments.is_object();
        is_call.then_some(ToolCall { name, arguments })
    }
}

fn add_text(parts: &mut Vec<AnswerPart>, text: &str) {
    if !text.is_empty() {
        parts.push(AnswerPart::Text(text.to_owned()));
    }
}

/// Returns a constraint to calls of `tools`: one, or several if `parallel`. With `answer`, a JSON
/// value that this schema accepts is possible instead.
#[cfg(feature = "http")]
pub(crate) fn constraint(
    syntax: &ToolSyntax,
    tools: &[Tool],
    parallel: bool,
    answer: Option<&Value>,
) -> Constraint {
    let literal = |text: String| Value::String(text).to_string();
    let mut grammar = String::from("start: calls");
    if let Some(schema) = answer {
        grammar.push_str(&format!(
            " | answer\nanswer: %json {}",
            with_whitespace(schema)
        ));
    }
    let more = if parallel { " (\"\\n\" call)*" } else { "" };
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    grammar.push_str(&format!("\ncalls: call{more}\ncall: {}", names.join(" | ")));
    for (rule, tool) in names.iter().zip(tools) {
        let (open, arguments) = (&syntax.open, &syntax.arguments);
        let name = literal(tool.name.clone());
        let before = literal(format!("{open}{{\"name\": {name}, \"{arguments}\": "));
        let after = literal(format!("}}{}", syntax.close));
        let schema = with_whitespace(&tool.parameters);
        grammar.push_str(&format!("\n{rule}: {before} {rule}_arguments {after}"));
        grammar.push_str(&format!("\n{rule}_arguments: %json {schema}"));
    }
    Constraint::Grammar(grammar)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str =
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}\n</tool_call>";

    /// The parts of a text that comes in pieces of `size` characters, texts joined.
    fn parts(text: &str, size: usize) -> Vec<AnswerPart> {
        let mut calls = ToolCalls::new(&ToolSyntax::default());
        let mut parts: Vec<AnswerPart> = Vec::new();
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars
            .chunks(size)
            .map(|chars| chars.iter().collect::<String>());
        let mut found: Vec<AnswerPart> = pieces.flat_map(|piece| calls.push(&piece)).collect();
        found.extend(calls.finish());
        for part in found {
            match (parts.last_mut(), part) {
                (Some(AnswerPart::Text(text)), AnswerPart::Text(more)) => text.push_str(&more),
                (_, part) => parts.push(part),
            }
        }
        parts
    }

    fn call() -> AnswerPart {
        AnswerPart::Call(ToolCall {
            name: "f".to_owned(),
            arguments: json!({ "a": "</tool_call>" }),
        })
    }

    fn text(text: &str) -> AnswerPart {
        AnswerPart::Text(text.to_owned())
    }

    #[test]
    fn calls_are_found_in_pieces_of_any_size() {
        let broken = "<tool_call>{oops}</tool_call>";
        let open_end =
            "<tool_call>\n{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"</tool_call>\\\"}\"}";
        for (answer, expected) in [
            (
                "no call < <tool at all ".to_owned(),
                vec![text("no call < <tool at all ")],
            ),
            (CALL.to_owned(), vec![call()]),
            (
                format!("wait \n{CALL}\n{CALL}"),
                vec![text("wait"), call(), call()],
            ),
            (format!("{CALL} then ü"), vec![call(), text(" then ü")]),
            (broken.to_owned(), vec![text(broken)]),
            (format!("{broken}\n{CALL}"), vec![text(broken), call()]),
            (open_end.to_owned(), vec![call()]),
            (
                "<tool_call>\n{\"name\": \"f\"".to_owned(),
                vec![text("<tool_call>\n{\"name\": \"f\"")],
            ),
            (
                "<tool_call>[1]</tool_call>".to_owned(),
                vec![text("<tool_call>[1]</tool_call>")],
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(parts(&answer, size), expected, "{answer:?} by {size}");
            }
        }
    }

    #[test]
    fn without_markers_everything_is_text() {
        for (open, close) in [("\n", "</c>"), ("<c>", " "), ("", "")] {
            let syntax = ToolSyntax {
                open: open.to_owned(),
                close: close.to_owned(),
                ..ToolSyntax::default()
            };
            let mut calls = ToolCalls::new(&syntax);
            let answer = "<c>{\"name\": \"f\"}</c>";
            assert_eq!(calls.push(answer), [text(answer)]);
            assert!(calls.finish().is_empty());
        }
    }

    /// An answer of many markers is read in a time that does not grow with their square.
    #[test]
    fn markers_in_an_open_call_are_tried_once() {
        let mut calls = ToolCalls::new(&ToolSyntax::default());
        assert!(calls.push("<tool_call>{\"a\": \"").is_empty());
        let start = std::time::Instant::now();
        for _ in 0..4000 {
            assert!(calls.push("</tool_call>").is_empty());
            assert!(calls.push("x").is_empty());
        }
        let time = start.elapsed();
        assert!(time.as_secs() < 30, "{time:?}");
        assert_eq!(
            calls.searched,
            calls.held.len() - 1,
            "behind the last marker"
        );
    }
}
