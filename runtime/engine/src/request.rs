//! Requests and answers.

use std::time::Duration;

use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::prompt::{Message, Tool};
use edge_lmm_models::reduce::{LanguageReduction, ReductionStep};
use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::media::Media;
use crate::sampler::Sampling;
use crate::session::{ReusedFrom, Speculation, SpeculationCounts, TokenLogprobs};
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
    /// Functions that the model may call. [`ToolCalls`](crate::ToolCalls) finds the calls in the
    /// answer.
    pub tools: &'a [Tool],
    /// Media, in the order in which the messages show them.
    pub media: &'a [Media],
    /// Options for the preparation of media.
    pub options: MediaOptions,
    /// Largest number of tokens to generate.
    pub max_tokens: usize,
    /// Continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Sampling of tokens.
    pub sampling: Sampling,
    /// Strings that end the answer; the text stops before the first of them.
    pub stop: &'a [String],
    /// Form that the text of the answer must have.
    pub constraint: Option<&'a Constraint>,
    /// Parses control tokens in messages, such as `<|im_end|>`. If `false`, they are text.
    pub parse_special: bool,
    /// Takes the text of the messages as the whole prompt, without the chat template.
    pub raw: bool,
    /// Reports the log-probability of each token with those of this many of the most likely ones
    /// ([`Event::Logprobs`]).
    pub logprobs: Option<usize>,
    /// Drafting of tokens that one step verifies together. The answer is the same on CPUs; on GPUs,
    /// products of several tokens may round differently.
    pub speculation: Speculation,
    /// Measures the stages of the answer ([`Answer::timing`]). On a device that works
    /// asynchronously this makes the answer slower.
    pub timing: bool,
}

impl<'a> Request<'a> {
    /// Default of the largest number of generated tokens.
    pub const MAX_TOKENS: usize = 256;

    /// Creates a request for a greedy answer of at most [`Self::MAX_TOKENS`] tokens, without media.
    pub fn new(messages: &'a [Message]) -> Self {
        Self {
            messages,
            tools: &[],
            media: &[],
            options: MediaOptions::default(),
            max_tokens: Self::MAX_TOKENS,
            ignore_eos: false,
            sampling: Sampling::default(),
            stop: &[],
            constraint: None,
            parse_special: false,
            raw: false,
            logprobs: None,
            speculation: Speculation::Off,
            timing: false,
        }
    }
}

impl Request<'_> {
    /// Returns the reduction of the tokens of media inside the language model, one of the methods of
    /// [`MediaOptions::reductions`]. It does not change the encoders' outputs. A second turn keeps
    /// the tokens that the first one kept; a conversation whose media were taken in with another
    /// reduction, or without one, is computed anew.
    pub fn language_reduction(&self) -> Option<LanguageReduction> {
        self.options.reductions.language()
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
    /// Those of [`visual_tokens`](Self::visual_tokens) that the later layers of the language model
    /// process, if the request reduces them there ([`Request::language_reduction`]).
    pub language_tokens: Option<usize>,
    /// Prompt tokens that were not computed again.
    pub reused_tokens: usize,
    /// Source of the reused tokens; `None` if there are none.
    pub reused_from: Option<ReusedFrom>,
    /// Tokens of the media that each method of reduction left, in the order in which they ran.
    pub reductions: Vec<ReductionStep>,
    /// Reason for the end.
    pub finish_reason: FinishReason,
    /// Steps and drafts, if the request asked for speculation.
    pub speculation: Option<SpeculationCounts>,
    /// Estimated time to the first token, if the engine has a cost model
    /// ([`Engine::use_costs`](crate::Engine::use_costs)).
    pub estimated_first_token: Option<Duration>,
    /// Time from the request, with its media decoded, to the first token.
    pub first_token: Duration,
    /// Stages from preprocessing to decoding, if the request asked for them.
    pub timing: Timing,
}

impl Answer {
    /// Returns the generated tokens per second of stage `decode` in `timing`. The scores of the
    /// first token come from the prefill, so the steps are one fewer than the tokens.
    pub fn tokens_per_second(&self, timing: &Timing) -> Option<f64> {
        let decode = timing.stage("decode")?;
        let steps = self.tokens.len().checked_sub(1).filter(|&n| n > 0)?;
        Some(steps as f64 / decode.time.as_secs_f64())
    }

    /// Returns the time from undecoded media to the first token: stage `media` of `timing` plus the
    /// answer's own time.
    pub fn first_token_after(&self, timing: &Timing) -> Duration {
        let media = timing.stage("media").map(|stage| stage.time);
        media.unwrap_or_default() + self.first_token
    }
}

/// Reason why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model gave an end-of-sequence token, or the text reached a stop string or the end of
    /// its constraint.
    Stop,
    /// The answer reached the requested number of tokens.
    Length,
    /// The conversation reached the context length of the model.
    Context,
    /// The request was canceled.
    Canceled,
}

/// Event reported while a request is answered.
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
    /// Log-probabilities of the next token, before the text that is complete with it.
    Logprobs(&'a TokenLogprobs),
    /// Further text of the answer.
    Text(&'a str),
    /// Progress within a stage: half layers of `vision` and `audio`, steps of a choice of tokens in
    /// `projector`, layers of `prefill`, tokens of `decode`.
    Progress {
        /// Name of the stage.
        stage: &'static str,
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
}
