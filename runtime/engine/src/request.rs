//! What is asked of a model, and what it answers.

use std::time::Duration;

use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::prompt::Message;
use serde::Serialize;

use crate::media::Media;
use crate::sampler::Sampling;

/// A question to a model.
///
/// ```
/// use edge_lmm::Request;
/// use edge_lmm_models::prompt::{Message, Role};
///
/// let messages = [Message::text(Role::User, "What is a tensor?")];
/// let request = Request {
///     max_tokens: 50,
///     ..Request::new(&messages)
/// };
/// ```
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// Its media, in the order in which the messages show them.
    pub media: &'a [Media],
    /// Options for the preparation of media.
    pub options: MediaOptions,
    /// Largest number of tokens to generate.
    pub max_tokens: usize,
    /// Continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// The answer ends before the first of these strings.
    pub stop: &'a [String],
    /// Control tokens in messages, such as `<|im_end|>`, take effect; without this they are text.
    pub parse_special: bool,
}

impl<'a> Request<'a> {
    /// Largest number of generated tokens if a request does not say.
    pub const MAX_TOKENS: usize = 256;

    /// A request for a greedy answer of at most [`Self::MAX_TOKENS`] tokens, without media.
    pub fn new(messages: &'a [Message]) -> Self {
        Self {
            messages,
            media: &[],
            options: MediaOptions::default(),
            max_tokens: Self::MAX_TOKENS,
            ignore_eos: false,
            sampling: Sampling::default(),
            stop: &[],
            parse_special: false,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without special tokens and without the stop string that ended it.
    pub text: String,
    /// The generated ids, including an end-of-sequence token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that stand for images, video or sound.
    pub visual_tokens: usize,
    /// Prompt tokens that were still in the cache from the turn before.
    pub reused_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Time from the request, with its media decoded, to the first token.
    pub first_token: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model gave an end-of-sequence token, or the text reached a stop string.
    Stop,
    /// It reached the requested number of tokens.
    Length,
    /// It reached the end of the model's context.
    Context,
    /// It was cancelled.
    Cancelled,
}

/// Reported while a request is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Media are preprocessed, and an upper bound of the prompt's length is known; the encoders
    /// come next.
    Prepared {
        /// Largest number of prompt tokens.
        prompt_tokens: usize,
        /// The media that have to be encoded.
        media: &'a [MediaInput],
    },
    /// Further text of the answer.
    Text(&'a str),
    /// Progress within a stage: layers of `vision`, `audio` and `prefill`, tokens of `decode`.
    Progress {
        /// Name of the stage.
        stage: &'static str,
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
}
