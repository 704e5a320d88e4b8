//! Input of a conversation on a terminal: questions and commands.

use edge_lmm_models::media::MediaKind;

/// Longest part of an unknown command that is repeated, in characters.
const SHOWN: usize = 40;

/// The commands and their arguments.
pub const COMMANDS: [(&str, &str, &str); 14] = [
    (
        "/media",
        "FILE",
        "adds an image, video or audio file to the next question",
    ),
    ("/image", "FILE", "adds an image"),
    ("/video", "FILE", "adds a video"),
    ("/audio", "FILE", "adds a sound, or the sound of a video"),
    ("/retry", "", "answers the last question again"),
    ("/undo", "", "removes the last question and its answer"),
    (
        "/drop",
        "turn|media",
        "removes the oldest turn, or the media of earlier turns",
    ),
    ("/stats", "", "shows tokens and times of the last answer"),
    ("/save", "FILE", "writes the conversation as text"),
    (
        "/save-cache",
        "FILE",
        "writes the conversation's state, for --prompt-cache FILE",
    ),
    ("/clear", "", "starts a new conversation"),
    ("/forget", "", "starts a new conversation"),
    ("/help", "", "lists the commands"),
    ("/quit", "", "exits, like the end of input"),
];

/// The part of a conversation that makes room for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Droppable {
    /// The oldest question and its answer.
    Turn,
    /// The media of all turns.
    Media,
}

/// A line of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// Whitespace only.
    Nothing,
    /// `/quit`
    Quit,
    /// `/clear` or `/forget`
    Forget,
    /// `/help`
    Help,
    /// `/retry`
    Retry,
    /// `/undo`
    Undo,
    /// `/stats`
    Stats,
    /// `/drop turn` or `/drop media`
    Drop(Droppable),
    /// `/media FILE`, or `/image`, `/video` and `/audio` with the kind: a file to show with the next
    /// question.
    Media(Option<MediaKind>, &'a str),
    /// `/save FILE`: a file for the conversation as text.
    Save(&'a str),
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
    /// with `/`. A question may have several lines.
    pub fn parse(line: &'a [u8]) -> Self {
        let Ok(line) = std::str::from_utf8(line) else {
            return Self::NotText;
        };
        let line = line.trim();
        if let Some(question) = line.strip_prefix('/').filter(|rest| rest.starts_with('/')) {
            return Self::Question(question);
        }
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, argument.trim()) {
            ("", _) => Self::Nothing,
            ("/quit", "") => Self::Quit,
            ("/clear" | "/forget", "") => Self::Forget,
            ("/help", "") => Self::Help,
            ("/retry", "") => Self::Retry,
            ("/undo", "") => Self::Undo,
            ("/stats", "") => Self::Stats,
            ("/drop", "turn") => Self::Drop(Droppable::Turn),
            ("/drop", "media") => Self::Drop(Droppable::Media),
            (_, path) if !path.is_empty() && command.starts_with('/') => {
                Self::with_path(command, path).unwrap_or_else(|| Self::unknown(line))
            }
            (command, _) if command.starts_with('/') => Self::unknown(line),
            _ => Self::Question(line),
        }
    }

    fn with_path(command: &str, path: &'a str) -> Option<Self> {
        Some(match command {
            "/media" => Self::Media(None, path),
            "/image" => Self::Media(Some(MediaKind::Image), path),
            "/video" => Self::Media(Some(MediaKind::Video), path),
            "/audio" => Self::Media(Some(MediaKind::Audio), path),
            "/save" => Self::Save(path),
            "/save-cache" => Self::SaveCache(path),
            _ => return None,
        })
    }

    fn unknown(line: &'a str) -> Self {
        let end = line.char_indices().nth(SHOWN);
        Self::Unknown(&line[..end.map_or(line.len(), |(end, _)| end)])
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
            ("/clear", Line::Forget),
            ("/help", Line::Help),
            ("/retry", Line::Retry),
            ("/undo\n", Line::Undo),
            ("/stats", Line::Stats),
            ("/drop  turn", Line::Drop(Droppable::Turn)),
            ("/drop media", Line::Drop(Droppable::Media)),
            ("/drop", Line::Unknown("/drop")),
            ("/drop all", Line::Unknown("/drop all")),
            ("/media  a b.png \n", Line::Media(None, "a b.png")),
            ("/image a.png", Line::Media(Some(MediaKind::Image), "a.png")),
            ("/video a.mp4", Line::Media(Some(MediaKind::Video), "a.mp4")),
            ("/audio a.wav", Line::Media(Some(MediaKind::Audio), "a.wav")),
            ("/media ", Line::Unknown("/media")),
            ("/save a b.txt", Line::Save("a b.txt")),
            ("/save-cache a b.cache", Line::SaveCache("a b.cache")),
            ("/save-cache", Line::Unknown("/save-cache")),
            ("/quit now", Line::Unknown("/quit now")),
            ("//quit", Line::Question("/quit")),
            ("what is /quit?\n", Line::Question("what is /quit?")),
            ("two\nlines\n", Line::Question("two\nlines")),
        ] {
            assert_eq!(Line::parse(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(Line::parse(b"a\xff"), Line::NotText);
    }

    /// Checks that every listed command is one.
    #[test]
    fn listed_commands_are_known() {
        for (command, argument, _) in COMMANDS {
            let argument = argument.split('|').next().unwrap_or_default();
            let line = format!("{command} {argument}");
            let parsed = Line::parse(line.as_bytes());
            assert!(
                !matches!(parsed, Line::Unknown(_) | Line::Question(_)),
                "{line}"
            );
        }
    }

    /// Checks that the message about an unknown command stays short, whatever was pasted.
    #[test]
    fn unknown_commands_are_cut() {
        let line = format!("/{}", "\u{e9}".repeat(10_000));
        let expected = format!("/{}", "\u{e9}".repeat(SHOWN - 1));
        assert_eq!(Line::parse(line.as_bytes()), Line::Unknown(&expected));
    }
}
