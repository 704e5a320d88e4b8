//! From a conversation to tokens and from tokens to text.
//!
//! [`TextProcessor`] owns the tokenizer and the chat template of a checkpoint. The template's text
//! and the messages' text stay apart on the way, so that control tokens in a message have no
//! effect.

mod assembly;
mod chat_template;
mod control_tokens;
mod message;
mod template_limits;
mod text_processor;
mod tokenizer_limits;

pub use assembly::{Prompt, PromptBuilder, Span, expand_placeholders, medium_text};
pub use message::{Content, Conversation, Message, Role};
pub use text_processor::{Rendered, TextProcessor, TextStream};
