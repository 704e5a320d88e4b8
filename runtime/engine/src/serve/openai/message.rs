//! Messages of a chat and the files in them.

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::prompt::{Content, Message, Role};

use super::error::ApiError;
use super::media::InlineFile;
use super::tools::read_call;
use super::wire::{Part, WireContent, WireMessage};
use crate::serve::address::is_address;
use crate::serve::inline::is_data_url;

/// Messages and their media, in the order in which the messages show them.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub messages: Vec<Message>,
    pub files: Vec<InlineFile>,
    /// `true` if addresses on the web are accepted.
    pub addresses: bool,
}

impl Conversation {
    /// Reads the messages of a request.
    ///
    /// # Errors
    /// If a role or a part is unknown or incomplete, or there is no message.
    pub fn new(messages: Vec<WireMessage>, addresses: bool) -> Result<Self, ApiError> {
        let mut conversation = Self {
            addresses,
            ..Self::default()
        };
        for (i, message) in messages.into_iter().enumerate() {
            conversation.add(message, &format!("messages[{i}]"))?;
        }
        match conversation.messages.is_empty() {
            true => Err(ApiError::field("messages", "the request has no message")),
            false => Ok(conversation),
        }
    }

    fn add(&mut self, message: WireMessage, place: &str) -> Result<(), ApiError> {
        let role = role(message.role.as_deref(), place)?;
        let calls = message.tool_calls.unwrap_or_default();
        if role != Role::Assistant && !calls.is_empty() {
            let message = format!("{place}: only messages of the assistant have tool calls");
            return Err(ApiError::field(&format!("{place}.tool_calls"), message));
        }
        let mut content = match message.content {
            None => vec![Content::Text(String::new())],
            Some(WireContent::Text(text)) => vec![Content::Text(text)],
            Some(WireContent::Parts(parts)) => {
                let parts = parts.into_iter().enumerate();
                parts
                    .map(|(i, part)| self.part(part, role, &format!("{place}.content[{i}]")))
                    .collect::<Result<_, _>>()?
            }
        };
        for (i, call) in calls.into_iter().enumerate() {
            let call = read_call(call, &format!("{place}.tool_calls[{i}]"))?;
            content.push(Content::ToolCall(call));
        }
        self.messages.push(Message { role, content });
        Ok(())
    }

    /// Accepts `data:` URLs, and addresses if the server reads some. Requests never name files.
    fn address(&self, url: String, place: &str) -> Result<String, ApiError> {
        if is_data_url(&url) || (self.addresses && is_address(&url)) {
            return Ok(url);
        }
        let refused = match self.addresses {
            true => "this is neither an address on the web nor a data: URL",
            false => "the server opens no addresses and no files",
        };
        Err(ApiError {
            code: "address_refused",
            ..ApiError::field(
                place,
                format!("{place}: {refused}; send the content as data:image/png;base64,..."),
            )
        })
    }

    fn part(&mut self, part: Part, role: Role, place: &str) -> Result<Content, ApiError> {
        let missing = |field: &str| {
            ApiError::field(
                place,
                format!("{place} has no {field:?} that could be read"),
            )
        };
        let (kind, text) = match part.kind.as_deref() {
            Some("text") => {
                let text = part.text.ok_or_else(|| missing("text"))?;
                return Ok(Content::Text(text));
            }
            Some("image_url") => {
                let url = part.image_url.ok_or_else(|| missing("image_url"))?;
                (Some(MediaKind::Image), self.address(url.into_url(), place)?)
            }
            Some("video_url") => {
                let url = part.video_url.ok_or_else(|| missing("video_url"))?;
                (Some(MediaKind::Video), self.address(url.into_url(), place)?)
            }
            Some("input_audio") => {
                let data = part.input_audio.and_then(|sound| sound.data);
                let data = data.ok_or_else(|| missing("input_audio"))?;
                (Some(MediaKind::Audio), data)
            }
            Some("file") => {
                let data = part.file.and_then(|file| file.file_data);
                let data = data.ok_or_else(|| missing("file.file_data"))?;
                (None, data)
            }
            found => {
                let found = shortened(found.unwrap_or("without a type"));
                let message = format!(
                    "{place} is {found:?}: expected text, image_url, input_audio, video_url or file"
                );
                return Err(ApiError::field(place, message));
            }
        };
        if role != Role::User {
            let message = format!("{place}: only messages of the user can show media");
            return Err(ApiError::field(place, message));
        }
        let file = InlineFile::new(kind, text, place)?;
        let kind = file.kind;
        self.files.push(file);
        Ok(Content::Media(kind))
    }
}

fn role(role: Option<&str>, place: &str) -> Result<Role, ApiError> {
    match role {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool") => Ok(Role::Tool),
        found => {
            let place = format!("{place}.role");
            let found = shortened(found.unwrap_or_default());
            let message = format!(
                "{place} is {found:?}: expected system, developer, user, assistant or tool"
            );
            Err(ApiError::field(&place, message))
        }
    }
}

/// Returns the beginning of a text of the client, for an error.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
