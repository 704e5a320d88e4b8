//! What is asked of a model, and what it answers.

use std::time::Duration;

use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::prompt::Message;
use serde::Serialize;

use crate::media::Media;
use crate::sampler::Sampling;
use crate::timing::Timing;

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
    /// Measures the stages of the answer ([`Answer::timing`]). On a device that works
    /// asynchronously this makes the answer slower.
    pub timing: bool,
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
            timing: false,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
    /// Stages from preprocessing to decoding, if the request asked for them.
    pub timing: Timing,
}

impl Answer {
    /// Generated tokens over the time of stage `decode` in `timing`. The scores of the first token
    /// come from the prefill, so the steps are one fewer than the tokens.
    pub fn tokens_per_second(&self, timing: &Timing) -> Option<f64> {
        let decode = timing.stage("decode")?;
        let steps = self.tokens.len().checked_sub(1).filter(|&n| n > 0)?;
        Some(steps as f64 / decode.time.as_secs_f64())
    }

    /// Time from the undecoded media to the first token: stage `media` of `timing`, and the
    /// answer's own.
    pub fn first_token_after(&self, timing: &Timing) -> Duration {
        let media = timing.stage("media").map(|stage| stage.time);
        media.unwrap_or_default() + self.first_token
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model gave an end-of-sequence token, or the text reached a stop string.
    Stop,
    /// It reached the requested number of tokens.
    Length,
    /// It reached the end of the model's context.
    Context,
    /// It was canceled.
    Canceled,
}

/// Reported while a request is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
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
    /// Progress within a stage: half layers of `vision` and `audio`, layers of `prefill`, tokens of
    /// `decode`.
    Progress {
        /// Name of the stage.
        stage: &'static str,
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
}
