//! Messages of a conversation.

use crate::media::MediaKind;
use crate::prompt::tools::{Tool, ToolCall};

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A function that the model called: its result.
    Tool,
}

impl Role {
    /// Returns the name used in chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The next image, video or audio clip of the conversation.
    Media(MediaKind),
    /// The next medium of the conversation, the sound of the video before it. Families that do not
    /// join both take it as an audio clip.
    SoundTrack,
    /// Text.
    Text(String),
    /// A call of a function, in messages of the model.
    ToolCall(ToolCall),
}

impl Content {
    /// Returns the kind of a medium; `None` for text and calls.
    pub fn media_kind(&self) -> Option<MediaKind> {
        match self {
            Self::Media(kind) => Some(*kind),
            Self::SoundTrack => Some(MediaKind::Audio),
            Self::Text(_) | Self::ToolCall(_) => None,
        }
    }

    /// Returns a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Media(_) | Self::SoundTrack | Self::ToolCall(_) => None,
        }
    }

    /// Returns a call.
    pub fn as_tool_call(&self) -> Option<&ToolCall> {
        match self {
            Self::ToolCall(call) => Some(call),
            _ => None,
        }
    }

    /// Calls `visit` with each of its texts.
    pub(crate) fn visit_texts<'a>(&'a self, visit: &mut impl FnMut(&'a str)) {
        match self {
            Self::Text(text) => visit(text),
            Self::ToolCall(call) => call.visit_texts(visit),
            Self::Media(_) | Self::SoundTrack => {}
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Author of the message.
    pub role: Role,
    /// Parts of the content, in order.
    pub content: Vec<Content>,
}

/// Messages and how they are read.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The messages so far.
    pub messages: &'a [Message],
    /// Functions that the model may call.
    pub tools: &'a [Tool],
    /// Control tokens in messages, such as `<|im_end|>`, take effect; without this they are text.
    pub parse_special: bool,
    /// The text of the messages is the whole prompt, without the chat template.
    pub raw: bool,
}

impl<'a> From<&'a [Message]> for Conversation<'a> {
    fn from(messages: &'a [Message]) -> Self {
        Self {
            messages,
            tools: &[],
            parse_special: false,
            raw: false,
        }
    }
}

impl<'a, const N: usize> From<&'a [Message; N]> for Conversation<'a> {
    fn from(messages: &'a [Message; N]) -> Self {
        messages.as_slice().into()
    }
}

impl<'a> From<&'a Vec<Message>> for Conversation<'a> {
    fn from(messages: &'a Vec<Message>) -> Self {
        messages.as_slice().into()
    }
}

impl Message {
    /// Returns the length of its text in bytes.
    pub fn text_len(&self) -> usize {
        let mut bytes = 0;
        for content in &self.content {
            content.visit_texts(&mut |text| bytes += text.len());
        }
        bytes
    }

    /// Returns its text, that of several parts on lines of their own.
    pub fn joined_text(&self) -> String {
        let texts = self.content.iter().filter_map(Content::as_text);
        texts.collect::<Vec<_>>().join("\n")
    }

    /// Returns the content as text, with placeholders for media.
    pub(crate) fn flat(&self, placeholder: impl Fn(MediaKind) -> String) -> String {
        let part = |content: &Content| match content.media_kind() {
            Some(kind) => placeholder(kind),
            None => content.as_text().unwrap_or_default().to_owned(),
        };
        self.content.iter().map(part).collect()
    }

    /// Returns the number of media that it shows.
    pub fn media(&self) -> usize {
        let kinds = self.content.iter().filter_map(Content::media_kind);
        kinds.count()
    }

    /// Creates a message that contains only text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
        }
    }

    /// Returns the message with `replace` applied to each text.
    pub(crate) fn with_texts(&self, replace: impl Fn(&str) -> String + Copy) -> Self {
        let content = self.content.iter().map(|content| match content {
            Content::Text(text) => Content::Text(replace(text)),
            Content::ToolCall(call) => Content::ToolCall(call.with_texts(replace)),
            medium => medium.clone(),
        });
        Self {
            role: self.role,
            content: content.collect(),
        }
    }
}
