//! Conversion of conversations to tokens and of tokens to text.
//!
//! [`TextProcessor`] owns the tokenizer and the chat template of a checkpoint. It keeps the text of
//! the template and that of messages apart, so that control tokens in a message have no effect.

mod chat_template;
mod control_tokens;
mod message;
pub(crate) mod placeholder;
mod text_processor;
mod tokenizer_limits;

pub use message::{Content, Message, Role};
pub use text_processor::{Rendered, TextProcessor, TextStream};
