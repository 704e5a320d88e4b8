//! Errors on one line.

/// Most characters of a message. Messages quote files and requests, which may be of any length.
const MAX_CHARS: usize = 2000;

/// The error and its causes, without repeating what a cause says already. Control characters,
/// which would begin a line or change a terminal, become blanks; the end of a long message is left
/// out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
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
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_follow_once() {
        let error = anyhow!("no such file").context("cannot open a");
        assert_eq!(one_line(&error), "cannot open a: no such file");
        let error = Err::<(), _>(anyhow!("b")).context("a: b").unwrap_err();
        assert_eq!(one_line(&error), "a: b");
    }

    #[test]
    fn quoted_input_cannot_break_the_line_or_flood_it() {
        let error = anyhow!("unknown field \u{1b}[2Ja\nb\u{9b}c\u{7f}");
        assert_eq!(one_line(&error), "unknown field  [2Ja b c ");
        let line = one_line(&anyhow!("ä".repeat(9000)));
        assert_eq!(line.chars().count(), MAX_CHARS + 3);
        assert!(line.ends_with("ä..."));
    }
}
