//! Conversion of conversations to tokens and of tokens to text.
//!
//! [`TextProcessor`] owns the tokenizer and the chat template of a checkpoint. It keeps the text of
//! the template and that of messages apart, so that control tokens in a message have no effect.

mod assembly;
mod chat_template;
mod control_tokens;
mod message;
mod template_limits;
mod text_processor;
mod token_bytes;
mod tokenizer_limits;
mod tools;

pub use assembly::{Prompt, PromptBuilder, Span, expand_placeholders, medium_text};
pub use message::{Content, Conversation, Message, Role};
pub use text_processor::{Rendered, TextProcessor, TextStream};
pub use tools::{Tool, ToolCall, ToolSyntax, spaced};
