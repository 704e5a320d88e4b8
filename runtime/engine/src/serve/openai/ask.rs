//! Checked requests.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use edge_lmm_models::prompt::{Message, Role};
use serde_json::Value;

use super::error::ApiError;
use super::media::{self, InlineFile, MAX_FILES};
use super::message::Conversation;
use super::tools::{Tools, read_format};
use super::wire::Wire;
use crate::sampler::Sampling;
use crate::serve::{Limits, Prepared, RequestError, check_stop};
use crate::{Constraint, one_line};

/// Most alternatives of a token that are reported.
const MAX_LOGPROBS: usize = 20;

/// The form of a request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`: messages, which the model's template makes a prompt of.
    Chat,
    /// `/v1/completions`: a text that the model continues.
    Completion,
}

/// A checked request. Its media are still in base64.
#[derive(Debug)]
pub struct Ask {
    /// The form of the answer.
    pub endpoint: Endpoint,
    /// Name of the model that the client asks for.
    pub model: Option<String>,
    /// `true` to send the text as it is generated.
    pub stream: bool,
    /// `true` for a last event with the numbers of tokens.
    pub include_usage: bool,
    /// `true` for events about the queue and the stages.
    pub progress: bool,
    messages: Vec<Message>,
    files: Vec<InlineFile>,
    sampling: Sampling,
    stop: Vec<String>,
    tools: Tools,
    constraint: Option<Constraint>,
    max_tokens: Option<usize>,
    ignore_eos: bool,
    logprobs: Option<usize>,
}

impl Ask {
    /// Reads and checks the body of a request.
    ///
    /// # Errors
    /// The reply to a body that is no request, or asks for something that is not supported.
    pub fn parse(endpoint: Endpoint, body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut wire: Wire = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(400, "invalid_json", one_line(&RequestError::Json(error)))
        })?;
        refuse_unsupported(&wire)?;
        let conversation = match endpoint {
            Endpoint::Chat => {
                let messages = wire.messages.take();
                let missing = || ApiError::field("messages", "the request has no \"messages\"");
                Conversation::new(messages.ok_or_else(missing)?, limits.addresses.is_some())?
            }
            Endpoint::Completion => completion(wire.prompt.take())?,
        };
        let count = conversation.files.len();
        if count > MAX_FILES {
            return Err(ApiError::field(
                "messages",
                format!("the request has {count} media, at most {MAX_FILES} are accepted"),
            ));
        }
        let mut stop = wire.stop.take().unwrap_or_default().strings().to_vec();
        check_stop(&stop)?;
        let tools = tools(endpoint, &mut wire)?;
        let format = read_format(wire.response_format.as_ref())?;
        let constraint = tools.constraint(&limits.tool_syntax, format)?;
        stop.extend(tools.stop(&limits.tool_syntax));
        let stream = wire.stream.unwrap_or(false);
        let options = wire.stream_options.as_ref();
        Ok(Self {
            endpoint,
            stream,
            include_usage: options.and_then(|o| o.include_usage).unwrap_or(false),
            progress: stream && wire.edge_lmm.as_ref().and_then(|e| e.progress) == Some(true),
            sampling: sampling(&wire, limits)?,
            logprobs: logprobs(endpoint, &wire)?,
            messages: conversation.messages,
            files: conversation.files,
            stop,
            tools,
            constraint,
            max_tokens: wire.max_completion_tokens.or(wire.max_tokens),
            ignore_eos: wire.ignore_eos.unwrap_or(false),
            model: wire.model,
        })
    }

    /// Returns `true` if the request has images, videos or sounds.
    pub fn has_media(&self) -> bool {
        !self.files.is_empty()
    }

    /// Returns `true` if the answer has log-probabilities.
    pub fn has_logprobs(&self) -> bool {
        self.logprobs.is_some()
    }

    /// Returns `true` if the answer may have calls of functions.
    pub fn has_tools(&self) -> bool {
        !self.tools.tools.is_empty()
    }

    /// Decodes the media.
    ///
    /// # Errors
    /// The reply to a request with media that cannot be used.
    pub fn prepare(&self, limits: &Limits) -> Result<Prepared, ApiError> {
        let start = Instant::now();
        let media = media::decode(&self.files, limits)?;
        Ok(Prepared {
            decoding: start.elapsed(),
            messages: self.messages.clone(),
            media,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            tools: self.tools.tools.clone(),
            constraint: self.constraint.clone(),
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            raw: self.endpoint == Endpoint::Completion,
            logprobs: self.logprobs,
        })
    }
}

/// Refuses fields that would change the answer and have no function here.
fn refuse_unsupported(wire: &Wire) -> Result<(), ApiError> {
    let more = |n: Option<u64>| n.is_some_and(|n| n != 1);
    let any = |items: &Option<Vec<Value>>| items.as_ref().is_some_and(|items| !items.is_empty());
    let bias = wire.logit_bias.as_ref().and_then(Value::as_object);
    let text_only = |modes: &Vec<String>| modes.iter().all(|mode| mode == "text");
    let refused = [
        (more(wire.n), "n", "only one answer per request: n = 1"),
        (more(wire.best_of), "best_of", "only one answer is computed"),
        (
            wire.echo == Some(true),
            "echo",
            "the prompt is not repeated",
        ),
        (
            wire.suffix
                .as_ref()
                .is_some_and(|suffix| !suffix.is_empty()),
            "suffix",
            "text cannot be inserted before a suffix",
        ),
        (
            bias.is_some_and(|bias| !bias.is_empty()),
            "logit_bias",
            "single tokens cannot be made more or less likely",
        ),
        (
            any(&wire.functions),
            "functions",
            "it is obsolete: send the functions as \"tools\"",
        ),
        (
            wire.modalities.as_ref().is_some_and(|m| !text_only(m)),
            "modalities",
            "answers are text",
        ),
        (wire.audio.is_some(), "audio", "answers are text"),
    ];
    match refused.into_iter().find(|(is_set, ..)| *is_set) {
        None => Ok(()),
        Some((_, param, message)) => Err(ApiError::unsupported(param, message)),
    }
}

/// Reads the functions of a request.
fn tools(endpoint: Endpoint, wire: &mut Wire) -> Result<Tools, ApiError> {
    let tools = wire.tools.take().unwrap_or_default();
    if endpoint == Endpoint::Completion && !tools.is_empty() {
        let message = "completions have no template that shows tools: use /v1/chat/completions";
        return Err(ApiError::unsupported("tools", message));
    }
    Tools::new(tools, wire.tool_choice.as_ref(), wire.parallel_tool_calls)
}

fn completion(prompt: Option<Value>) -> Result<Conversation, ApiError> {
    let refuse = |message: &str| Err(ApiError::unsupported("prompt", message));
    let text = match prompt {
        Some(Value::String(text)) => text,
        Some(Value::Array(mut texts)) if texts.len() == 1 => match texts.remove(0) {
            Value::String(text) => text,
            _ => return refuse("\"prompt\" is no text; token ids are not supported"),
        },
        Some(_) => return refuse("\"prompt\" is not one text: expected \"prompt\": \"...\""),
        None => return Err(ApiError::field("prompt", "the request has no \"prompt\"")),
    };
    Ok(Conversation {
        messages: vec![Message::text(Role::User, text)],
        files: Vec::new(),
        addresses: false,
    })
}

fn sampling(wire: &Wire, limits: &Limits) -> Result<Sampling, ApiError> {
    let sampling = Sampling {
        temperature: wire.temperature.unwrap_or(0.0),
        // Some clients send -1 for all.
        top_k: wire
            .top_k
            .and_then(|k| usize::try_from(k).ok())
            .unwrap_or(0),
        top_p: wire.top_p.unwrap_or(1.0),
        min_p: wire.min_p.unwrap_or(0.0),
        // The bits of a negative number are a seed as well.
        seed: wire.seed.map_or_else(any_seed, |seed| seed as u64),
        repetition_penalty: wire.repetition_penalty.or(limits.repetition_penalty),
        presence_penalty: wire.presence_penalty.unwrap_or(0.0),
        frequency_penalty: wire.frequency_penalty.unwrap_or(0.0),
        ignore_generation_config: limits.ignore_generation_config,
    };
    sampling.check()?;
    Ok(sampling)
}

/// Returns a seed that differs from request to request.
fn any_seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// Returns the number of alternatives that are asked for.
fn logprobs(endpoint: Endpoint, wire: &Wire) -> Result<Option<usize>, ApiError> {
    let top = wire.top_logprobs;
    let wanted = match (endpoint, &wire.logprobs) {
        (_, None | Some(Value::Null | Value::Bool(false))) => None,
        (Endpoint::Chat, Some(Value::Bool(true))) => Some(top.unwrap_or(0)),
        (Endpoint::Completion, Some(Value::Bool(true))) => Some(0),
        (Endpoint::Completion, Some(Value::Number(n))) => {
            Some(n.as_u64().map_or(usize::MAX, |n| n as usize))
        }
        (Endpoint::Chat, Some(_)) => {
            let message = "\"logprobs\" is neither true nor false";
            return Err(ApiError::field("logprobs", message));
        }
        (Endpoint::Completion, Some(_)) => {
            let message = "\"logprobs\" is not a number of tokens";
            return Err(ApiError::field("logprobs", message));
        }
    };
    if wanted.is_none() && top.is_some_and(|top| top > 0) {
        let message = "\"top_logprobs\" requires \"logprobs\": true";
        return Err(ApiError::field("top_logprobs", message));
    }
    match wanted {
        Some(count) if count > MAX_LOGPROBS => Err(ApiError::field(
            "top_logprobs",
            format!("at most {MAX_LOGPROBS} alternatives of a token are reported"),
        )),
        wanted => Ok(wanted),
    }
}
