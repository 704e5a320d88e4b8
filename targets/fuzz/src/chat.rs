//! Input of `edge-lmm chat`.

use edge_lmm::chat::Line;

use crate::mutate::Form;
use crate::{Target, errors};

/// A line of a conversation.
pub const CHAT_LINE: Target = Target {
    name: "chat_line",
    form: Form::Words(&[
        b"/media ",
        b"/save-cache ",
        b"/quit",
        b"/forget",
        b"/help",
        b"/drop turn",
        b"/undo",
        b"/image ",
        b"//",
        b" ",
        b"\n",
        b"\r\n",
        b"\t",
        b"\0",
        b"\xc2\xa0",
        b"\xe2\x80\x83",
        b"\xf0\x9f\xa6\x80",
        b"\xff",
    ]),
    seeds: || {
        [
            "What is this?\n",
            "/media a b.png\n",
            "/save-cache a b\n",
            "/quit",
            "/forget\r\n",
            " /help ",
            "/drop  media",
            "//quit\n",
            "/media",
            "/unknown \u{3000}x",
        ]
        .map(|line| line.as_bytes().to_vec())
        .into()
    },
    run: |input| {
        let text = std::str::from_utf8(input);
        let line = Line::parse(input);
        assert_eq!(line == Line::NotText, text.is_err());
        let trimmed = text.unwrap_or_default().trim();
        assert_eq!(
            line == Line::Nothing,
            text.is_ok() && trimmed.is_empty(),
            "{trimmed:?}"
        );
        match line {
            Line::Question(question) if question.starts_with('/') => {
                assert_eq!(trimmed.strip_prefix('/'), Some(question));
            }
            Line::Question(question) => assert_eq!(question, trimmed),
            Line::Media(_, path) | Line::Save(path) | Line::SaveCache(path) => {
                assert!(!path.is_empty() && trimmed.starts_with('/') && trimmed.ends_with(path));
            }
            Line::Unknown(command) => {
                assert!(trimmed.starts_with(command) && command.starts_with('/'));
                errors::check_line(&format!("{command:?}"));
            }
            Line::Quit => assert_eq!(trimmed, "/quit"),
            Line::Forget => assert!(["/clear", "/forget"].contains(&trimmed)),
            Line::Help => assert_eq!(trimmed, "/help"),
            Line::Retry => assert_eq!(trimmed, "/retry"),
            Line::Undo => assert_eq!(trimmed, "/undo"),
            Line::Stats => assert_eq!(trimmed, "/stats"),
            Line::Drop(_) => assert!(trimmed.starts_with("/drop")),
            Line::Nothing | Line::NotText => {}
        }
    },
};
