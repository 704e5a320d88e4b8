//! A conversation, as the user and the model see it.

use crate::media::MediaKind;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The next medium of the conversation.
    Media(MediaKind),
    /// Text.
    Text(String),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Content>,
}

/// Messages and how they are read.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The messages so far.
    pub messages: &'a [Message],
    /// Control tokens in messages, such as `<|im_end|>`, take effect; without this they are text.
    pub parse_special: bool,
}

impl<'a> From<&'a [Message]> for Conversation<'a> {
    fn from(messages: &'a [Message]) -> Self {
        Self {
            messages,
            parse_special: false,
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
    /// Bytes of its text.
    pub fn text_len(&self) -> usize {
        let text = self.content.iter().map(|content| match content {
            Content::Text(text) => text.len(),
            Content::Media(_) => 0,
        });
        text.sum()
    }

    /// A message of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
        }
    }

    /// The message with each text replaced.
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
