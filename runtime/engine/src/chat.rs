//! Input of a conversation on a terminal: questions and commands.

/// Longest part of an unknown command that is repeated, in characters.
const SHOWN: usize = 40;

/// A line of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// Whitespace only.
    Nothing,
    /// `/quit`
    Quit,
    /// `/forget`
    Forget,
    /// `/help`
    Help,
    /// `/media FILE`: a file to show with the next question.
    Media(&'a str),
    /// `/save-cache FILE`: a file for the state of the conversation.
    SaveCache(&'a str),
    /// Start of an unknown command.
    Unknown(&'a str),
    /// A question.
    Question(&'a str),
    /// Bytes that are not UTF-8.
    NotText,
}

impl<'a> Line<'a> {
    /// Reads a line with or without its end. One that begins with `//` is a question that begins
    /// with `/`.
    pub fn parse(line: &'a [u8]) -> Self {
        let Ok(line) = std::str::from_utf8(line) else {
            return Self::NotText;
        };
        let line = line.trim();
        if let Some(question) = line.strip_prefix('/').filter(|rest| rest.starts_with('/')) {
            return Self::Question(question);
        }
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => Self::Nothing,
            ("/quit", "") => Self::Quit,
            ("/forget", "") => Self::Forget,
            ("/help", "") => Self::Help,
            ("/media", path) if !path.trim().is_empty() => Self::Media(path.trim()),
            ("/save-cache", path) if !path.trim().is_empty() => Self::SaveCache(path.trim()),
            (command, _) if command.starts_with('/') => {
                let end = line.char_indices().nth(SHOWN);
                Self::Unknown(&line[..end.map_or(line.len(), |(end, _)| end)])
            }
            _ => Self::Question(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_begin_with_a_slash() {
        for (line, expected) in [
            (" \r\n", Line::Nothing),
            ("/quit\n", Line::Quit),
            (" /forget ", Line::Forget),
            ("/help", Line::Help),
            ("/media  a b.png \n", Line::Media("a b.png")),
            ("/media ", Line::Unknown("/media")),
            ("/save-cache a b.cache", Line::SaveCache("a b.cache")),
            ("/save-cache", Line::Unknown("/save-cache")),
            ("/quit now", Line::Unknown("/quit now")),
            ("//quit", Line::Question("/quit")),
            ("what is /quit?\n", Line::Question("what is /quit?")),
        ] {
            assert_eq!(Line::parse(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(Line::parse(b"a\xff"), Line::NotText);
    }

    /// Checks that the message about an unknown command stays short, whatever was pasted.
    #[test]
    fn unknown_commands_are_cut() {
        let line = format!("/{}", "\u{e9}".repeat(10_000));
        let expected = format!("/{}", "\u{e9}".repeat(SHOWN - 1));
        assert_eq!(Line::parse(line.as_bytes()), Line::Unknown(&expected));
    }
}
