//! Messages of a conversation.

use crate::media::MediaKind;

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Returns the name used in chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The next image, video or audio clip of the conversation.
    Media(MediaKind),
    /// Text.
    Text(String),
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
    /// Control tokens in messages, such as `<|im_end|>`, take effect; without this they are text.
    pub parse_special: bool,
    /// The text of the messages is the whole prompt, without the chat template.
    pub raw: bool,
}

impl<'a> From<&'a [Message]> for Conversation<'a> {
    fn from(messages: &'a [Message]) -> Self {
        Self {
            messages,
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
        let text = self.content.iter().map(|content| match content {
            Content::Text(text) => text.len(),
            Content::Media(_) => 0,
        });
        text.sum()
    }

    /// Returns its text, that of several parts on lines of their own.
    pub fn joined_text(&self) -> String {
        let texts = self.content.iter().filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            Content::Media(_) => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// Returns the content as text, with placeholders for media.
    pub(crate) fn flat(&self, placeholder: impl Fn(MediaKind) -> String) -> String {
        let parts = self.content.iter().map(|content| match content {
            Content::Media(kind) => placeholder(*kind),
            Content::Text(text) => text.clone(),
        });
        parts.collect()
    }

    /// Returns the number of media that it shows.
    pub fn media(&self) -> usize {
        let is_media = |content: &&Content| matches!(content, Content::Media(_));
        self.content.iter().filter(is_media).count()
    }

    /// Creates a message that contains only text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
        }
    }

    /// Returns the message with `replace` applied to each text.
    pub(crate) fn with_texts(&self, replace: impl Fn(&str) -> String) -> Self {
        let content = self.content.iter().map(|content| match content {
            Content::Media(kind) => Content::Media(*kind),
            Content::Text(text) => Content::Text(replace(text)),
        });
        Self {
            role: self.role,
            content: content.collect(),
        }
    }
}
