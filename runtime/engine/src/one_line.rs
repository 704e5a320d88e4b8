//! Errors on one line.

use std::error::Error;
use std::iter::successors;

/// Largest number of characters of a message. Messages quote files and requests, which may be of
/// any length.
const MAX_CHARS: usize = 2000;

/// Formats an error and its causes on one line, without repeating a cause that a message already
/// contains. Control characters become spaces; a long message is truncated.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    for cause in successors(error.source(), |cause| (*cause).source()) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    let mut chars = message.chars();
    let mut line: String = chars
        .by_ref()
        .take(MAX_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Failure {
        message: String,
        source: Option<Box<Failure>>,
    }

    fn failure(messages: &[&str]) -> Failure {
        let (message, causes) = messages.split_first().expect("a message");
        Failure {
            message: (*message).to_owned(),
            source: (!causes.is_empty()).then(|| Box::new(failure(causes))),
        }
    }

    #[test]
    fn causes_follow_once() {
        let error = failure(&["cannot open a", "no such file"]);
        assert_eq!(one_line(&error), "cannot open a: no such file");
        assert_eq!(one_line(&failure(&["a: b", "b"])), "a: b");
    }

    #[test]
    fn quoted_input_cannot_break_the_line_or_flood_it() {
        let error = failure(&["unknown field \u{1b}[2Ja\nb\u{9b}c\u{7f}"]);
        assert_eq!(one_line(&error), "unknown field  [2Ja b c ");
        let line = one_line(&failure(&[&"ä".repeat(9000)]));
        assert_eq!(line.chars().count(), MAX_CHARS + 3);
        assert!(line.ends_with("ä..."));
    }
}
