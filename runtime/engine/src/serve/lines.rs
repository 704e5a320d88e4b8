//! Requests and replies of one JSON object per line.
//!
//! ```text
//! {"id": 1, "prompt": "What is this?", "images": ["/data/cat.jpg"], "max_tokens": 64}
//! {"id": 1, "done": true, "text": "A cat.", "tokens": [32, 8251, ...], ...}
//! {"id": 2, "prompt": "And this?", "images": ["data:image/png;base64,iVBORw0K..."], "stream": true}
//! {"id": 2, "delta": "A"}
//! {"id": 2, "delta": " dog."}
//! {"id": 2, "done": true, "text": "A dog.", ...}
//! {"id": 3, "error": "..."}
//! ```
//! Each request is a separate conversation. Encoder outputs of an image and common prompt prefixes
//! are computed once and shared between requests; the states of several conversations are kept
//! ([`Session::keep_conversations`](crate::Session::keep_conversations)).

use std::path::PathBuf;
use std::time::Instant;

use edge_lmm_models::prompt::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inline::{InlineError, inline_bytes, is_data_url};
use super::{Limits, Prepared, StopError, check_stop};
use crate::media::{MediaBudget, MediaError, MediaKind, Source, decode_image, user_message};
use crate::report::AnswerReport;
use crate::sampler::{Sampling, SamplingError};
use crate::{Answer, Constraint, EngineError, Media, one_line};

/// Maximum images per request.
const MAX_IMAGES: usize = 64;
/// Maximum length of `id` in bytes, because every reply contains it.
const MAX_ID: usize = 256;

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Id that is repeated in every reply: a string, a number or null.
    pub id: Value,
    /// The question.
    pub prompt: Option<String>,
    /// System message.
    pub system: Option<String>,
    /// Images of the question.
    pub images: Vec<ImageSource>,
    /// A video file.
    pub video: Option<PathBuf>,
    /// An audio file.
    pub audio: Option<PathBuf>,
    /// Maximum number of tokens to generate, in addition to the server's limit.
    pub max_tokens: Option<usize>,
    /// `true` to continue after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Sampling temperature.
    pub temperature: f32,
    /// Number of most likely tokens to sample from, 0 for all.
    pub top_k: usize,
    /// Total probability of the most likely tokens to sample from, 1 by default.
    pub top_p: Option<f32>,
    /// Pick among tokens of at least this share of the best one's probability, 0 for all.
    pub min_p: f32,
    /// Makes tokens of the answer less likely, 0 is off.
    pub presence_penalty: f32,
    /// Makes tokens of the answer less likely with each time, 0 is off.
    pub frequency_penalty: f32,
    /// Strings that end the answer.
    pub stop: Stop,
    /// JSON schema of the answer. At most one of this and the following three is given.
    pub json_schema: Option<Value>,
    /// `true` for an answer that is a JSON object of any form.
    pub json_object: bool,
    /// Regular expression that matches the whole answer.
    pub regex: Option<String>,
    /// Grammar of the answer, in Lark's notation.
    pub grammar: Option<String>,
    /// Start of the random sequence.
    pub seed: u64,
    /// Penalty of tokens that occurred before, 1 to disable; the server's value by default.
    pub repetition_penalty: Option<f32>,
    /// `true` to send the text as it is generated.
    pub stream: bool,
}

/// One stop string or several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Default for Stop {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Stop {
    /// All of them.
    pub fn strings(&self) -> &[String] {
        match self {
            Self::One(string) => std::slice::from_ref(string),
            Self::Many(strings) => strings,
        }
    }
}

/// An image of a question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ImageSource {
    /// Path of a file on the server, or a `data:` URL.
    File(String),
    /// Content of the file.
    Inline {
        /// Base64, optionally as a `data:` URL.
        base64: String,
    },
}

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The line is not a request.
    #[error("invalid request: {0}")]
    Json(serde_json::Error),
    /// The question is missing.
    #[error("the request has no \"prompt\": expected {{\"prompt\": \"What is this?\", ...}}")]
    NoPrompt,
    /// A setting of the choice of tokens is out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// More or longer stop strings than a request may have.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Several forms of the answer.
    #[error("only one of \"json_schema\", \"json_object\", \"regex\" and \"grammar\" can be given")]
    SeveralConstraints,
    /// More images than a request may have.
    #[error("the request has {0} images, at most {MAX_IMAGES} are accepted")]
    TooManyImages(usize),
    /// A file where none may be named.
    #[error("files are disabled; send images in base64")]
    FilesRefused,
    /// An image that is not base64.
    #[error(transparent)]
    Inline(#[from] InlineError),
    /// An image, video or sound.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// A reply line of the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// Newly generated text.
    Delta {
        /// Id of the request.
        id: Value,
        /// The text.
        delta: String,
    },
    /// The complete answer.
    Done {
        /// Id of the request.
        id: Value,
        /// Always `true`.
        done: bool,
        /// The answer.
        #[serde(flatten)]
        report: Box<AnswerReport>,
    },
    /// The request failed.
    Error {
        /// Id of the request, if it could be parsed.
        id: Value,
        /// The reason.
        error: String,
    },
}

impl Reply {
    /// Creates an error without a request id.
    pub fn error(error: String) -> Self {
        Self::Error {
            id: Value::Null,
            error,
        }
    }

    /// Creates the last reply to the request `id`.
    pub fn last(id: Value, answer: &Result<Answer, EngineError>) -> Self {
        match answer {
            Ok(answer) => Self::Done {
                id,
                done: true,
                report: Box::new(AnswerReport::new(answer, &answer.timing)),
            },
            Err(error) => Self::Error {
                id,
                error: one_line(error),
            },
        }
    }

    /// Returns the line without its newline.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}

impl Question {
    /// Parses a line.
    ///
    /// # Errors
    /// The reply to an invalid line.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let question: Self = serde_json::from_slice(line).map_err(|error| Reply::Error {
            id: id_of(line),
            error: one_line(&RequestError::Json(error)),
        })?;
        match is_id(&question.id) {
            true => Ok(question),
            false => Err(Reply::error(format!(
                "\"id\" is not null, a number or a string of at most {MAX_ID} bytes"
            ))),
        }
    }

    /// Returns `true` if the request has images, a video or audio.
    pub fn has_media(&self) -> bool {
        !self.images.is_empty() || self.video.is_some() || self.audio.is_some()
    }

    /// Checks the question and decodes its media.
    ///
    /// # Errors
    /// The reply to a request that cannot be answered.
    pub fn prepare(&self, limits: &Limits) -> Result<Prepared, Reply> {
        let start = Instant::now();
        let prepared = self.try_prepare(limits).map_err(|error| Reply::Error {
            id: self.id.clone(),
            error: one_line(&error),
        })?;
        Ok(Prepared {
            decoding: start.elapsed(),
            ..prepared
        })
    }

    fn try_prepare(&self, limits: &Limits) -> Result<Prepared, RequestError> {
        let prompt = self.prompt.as_deref().ok_or(RequestError::NoPrompt)?;
        let sampling = sampling(self, limits)?;
        let stop = self.stop.strings().to_vec();
        check_stop(&stop)?;
        let media = media(self, limits)?;
        Ok(Prepared {
            messages: messages(self, prompt, &media),
            media,
            sampling,
            stop,
            constraint: constraint(self)?,
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            ..Prepared::default()
        })
    }
}

fn is_id(id: &Value) -> bool {
    match id {
        Value::Null | Value::Number(_) => true,
        Value::String(text) => text.len() <= MAX_ID,
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Returns the id of an invalid request.
fn id_of(line: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Identified {
        id: Value,
    }
    serde_json::from_slice::<Identified>(line)
        .ok()
        .map(|identified| identified.id)
        .filter(is_id)
        .unwrap_or(Value::Null)
}

fn sampling(question: &Question, limits: &Limits) -> Result<Sampling, SamplingError> {
    let sampling = Sampling {
        temperature: question.temperature,
        top_k: question.top_k,
        top_p: question.top_p.unwrap_or(1.0),
        min_p: question.min_p,
        seed: question.seed,
        repetition_penalty: question.repetition_penalty.or(limits.repetition_penalty),
        presence_penalty: question.presence_penalty,
        frequency_penalty: question.frequency_penalty,
        ignore_generation_config: limits.ignore_generation_config,
    };
    sampling.check()?;
    Ok(sampling)
}

/// Returns the form that the answer should have.
fn constraint(question: &Question) -> Result<Option<Constraint>, RequestError> {
    let given = [
        question.json_schema.clone().map(Constraint::JsonSchema),
        question.json_object.then_some(Constraint::JsonObject),
        question.regex.clone().map(Constraint::Regex),
        question.grammar.clone().map(Constraint::Grammar),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (_, Some(_)) => Err(RequestError::SeveralConstraints),
        (constraint, None) => Ok(constraint),
    }
}

fn media(question: &Question, limits: &Limits) -> Result<Vec<Media>, RequestError> {
    if question.images.len() > MAX_IMAGES {
        return Err(RequestError::TooManyImages(question.images.len()));
    }
    let open = |path: &PathBuf, kind| {
        if !limits.files {
            return Err(RequestError::FilesRefused);
        }
        let source = Source::file(path)?;
        let source = match &limits.ffmpeg {
            Some(program) => source.with_ffmpeg(program),
            None => source,
        };
        Ok(Media::read(&source, kind, limits.frames)?)
    };
    let mut budget = MediaBudget::new();
    let mut media = Vec::new();
    let mut hold = |medium: Media| -> Result<(), RequestError> {
        budget.hold(&medium)?;
        media.push(medium);
        Ok(())
    };
    for (i, image) in question.images.iter().enumerate() {
        let inline = match image {
            ImageSource::Inline { base64 } => Some(base64.as_str()),
            ImageSource::File(text) => is_data_url(text).then_some(text.as_str()),
        };
        hold(match (inline, image) {
            (Some(text), _) => {
                let bytes = inline_bytes(text, &format!("images[{i}]"))?;
                Media::image(decode_image(&bytes)?)
            }
            (None, ImageSource::File(path)) => open(&path.into(), MediaKind::Image)?,
            (None, ImageSource::Inline { .. }) => unreachable!("inline images have text"),
        })?;
    }
    let files = [
        (&question.video, MediaKind::Video),
        (&question.audio, MediaKind::Audio),
    ];
    for (path, kind) in files {
        if let Some(path) = path {
            hold(open(path, kind)?)?;
        }
    }
    Ok(media)
}

/// Builds the system message and a user turn with the media before the question.
fn messages(question: &Question, prompt: &str, media: &[Media]) -> Vec<Message> {
    let system = question.system.clone();
    let system = system.map(|text| Message::text(Role::System, text));
    system
        .into_iter()
        .chain([user_message(media, prompt)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_do_not_repeat_a_whole_request() {
        let key = r"a\u000a\u001b".repeat(9000);
        let line = format!(r#"{{"id": 7, "{key}": 1}}"#);
        let reply = Question::parse(line.as_bytes()).unwrap_err();
        let Reply::Error { id, error } = &reply else {
            panic!("{reply:?}");
        };
        assert_eq!(*id, 7);
        assert!(
            error.starts_with("invalid request: unknown field"),
            "{error}"
        );
        assert!(
            error.len() < 3000 && !error.contains(char::is_control),
            "{error}"
        );
    }
}
