//! Requests and replies of the server, one JSON object per line.
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

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use data_encoding::{BASE64, BASE64_NOPAD, DecodeError};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::prompt::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::media::{
    MediaBudget, MediaError, MediaKind, Source, VideoOptions, decode_image, user_message,
};
use crate::report::AnswerReport;
use crate::request_estimate::RequestEstimator;
use crate::sampler::{Sampling, SamplingError};
use crate::{Answer, AnySession, EngineError, Event, Media, Request, one_line};

/// Maximum length of a request in bytes, enough for some images in base64.
pub const MAX_LINE: usize = 64 << 20;
/// Maximum images per request.
const MAX_IMAGES: usize = 64;
/// Maximum length of `id` in bytes, because every reply contains it.
const MAX_ID: usize = 256;
/// Most stop strings of a request.
const MAX_STOP: usize = 16;
/// Most bytes of a stop string.
const MAX_STOP_BYTES: usize = 256;

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
    #[error(
        "the request has {count} stop strings of up to {longest} bytes, at most {MAX_STOP} of \
         {MAX_STOP_BYTES} bytes are accepted"
    )]
    Stop {
        /// Number of strings.
        count: usize,
        /// Bytes of the longest one.
        longest: usize,
    },
    /// More images than a request may have.
    #[error("the request has {0} images, at most {MAX_IMAGES} are accepted")]
    TooManyImages(usize),
    /// A file where none may be named.
    #[error("files are disabled; send images in base64")]
    FilesRefused,
    /// A `data:` URL of another encoding.
    #[error("images[{index}] is a data: URL without base64: expected data:image/png;base64,...")]
    DataUrl {
        /// Number of the image, from 0.
        index: usize,
    },
    /// Text that is not base64.
    #[error("invalid base64 in images[{index}]: {source}")]
    Base64 {
        /// Number of the image, from 0.
        index: usize,
        /// The error of the decoder.
        source: DecodeError,
    },
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

    /// Returns the line without its newline.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}

/// Limits and defaults of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum tokens of an answer.
    pub max_tokens: usize,
    /// `true` if requests may name files.
    pub files: bool,
    /// Options of media preprocessing.
    pub media: MediaOptions,
    /// Selection of video frames.
    pub frames: VideoOptions,
    /// The program ffmpeg, if requests may name videos that it has to convert.
    pub ffmpeg: Option<PathBuf>,
    /// Repetition penalty of requests without one; the checkpoint's if `None`.
    pub repetition_penalty: Option<f32>,
    /// `true` to ignore the checkpoint's `generation_config.json` in the logits.
    pub ignore_generation_config: bool,
    /// Lets control tokens in questions take effect.
    pub parse_special: bool,
}

/// A request with decoded media.
#[derive(Debug, Clone)]
pub struct Prepared {
    question: Question,
    media: Vec<Media>,
    messages: Vec<Message>,
    sampling: Sampling,
    /// Decoding time, measured here because decoding runs on a separate thread without stages.
    decoding: Duration,
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
    pub fn prepare(self, limits: &Limits) -> Result<Prepared, Reply> {
        let start = Instant::now();
        match self.try_prepare(limits) {
            Ok((sampling, media, messages)) => Ok(Prepared {
                decoding: start.elapsed(),
                question: self,
                media,
                messages,
                sampling,
            }),
            Err(error) => Err(Reply::Error {
                id: self.id,
                error: one_line(&error),
            }),
        }
    }

    fn try_prepare(
        &self,
        limits: &Limits,
    ) -> Result<(Sampling, Vec<Media>, Vec<Message>), RequestError> {
        let prompt = self.prompt.as_deref().ok_or(RequestError::NoPrompt)?;
        let sampling = sampling(self, limits)?;
        let media = media(self, limits)?;
        let messages = messages(self, prompt, &media);
        Ok((sampling, media, messages))
    }
}

impl Prepared {
    /// Answers the request; `reply` receives the lines to send. With an `estimator`, a request that
    /// does not fit into memory is rejected before anything is encoded. `watch` receives every event
    /// and cancels the work by breaking, for clients that have disconnected.
    pub fn answer(
        &self,
        session: &mut AnySession,
        limits: &Limits,
        estimator: Option<&RequestEstimator>,
        mut reply: impl FnMut(Reply),
        mut watch: impl FnMut(&Event<'_>) -> ControlFlow<()>,
    ) {
        let id = &self.question.id;
        let answer = self.generate(session, limits, estimator, |event| {
            if let Event::Text(delta) = event
                && self.question.stream
            {
                reply(Reply::Delta {
                    id: id.clone(),
                    delta: delta.to_owned(),
                });
            }
            watch(&event)
        });
        reply(match answer {
            Ok(answer) => {
                let mut timing = answer.timing.clone();
                if !self.media.is_empty() {
                    timing.prepend("media", self.decoding, self.media.len());
                }
                Reply::Done {
                    id: id.clone(),
                    done: true,
                    report: Box::new(AnswerReport::new(&answer, &timing)),
                }
            }
            Err(error) => Reply::Error {
                id: id.clone(),
                error: one_line(&error),
            },
        });
    }

    fn generate(
        &self,
        session: &mut AnySession,
        limits: &Limits,
        estimator: Option<&RequestEstimator>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let wanted = self.question.max_tokens.unwrap_or(limits.max_tokens);
        let request = Request {
            media: &self.media,
            options: limits.media.clone(),
            max_tokens: wanted.min(limits.max_tokens),
            ignore_eos: self.question.ignore_eos,
            sampling: self.sampling.clone(),
            stop: self.question.stop.strings(),
            parse_special: limits.parse_special,
            timing: true,
            ..Request::new(&self.messages)
        };
        let answer = try_answer(session, &request, estimator, &mut on_event);
        match answer {
            // The memory may be that of other conversations.
            Err(EngineError::DoesNotFit(_)) if session.forget_others() => {
                try_answer(session, &request, estimator, &mut on_event)
            }
            answer => answer,
        }
    }
}

/// Answers a request unless `estimator` finds that it does not fit into memory.
fn try_answer(
    session: &mut AnySession,
    request: &Request<'_>,
    estimator: Option<&RequestEstimator>,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Answer, EngineError> {
    let mut fits = Ok(());
    let answer = session.answer(request, |event| {
        if let (
            Some(estimator),
            Event::Prepared {
                prompt_tokens,
                media,
            },
        ) = (estimator, &event)
        {
            let estimate = estimator.estimate(media, *prompt_tokens, request.max_tokens);
            fits = estimator.check(&estimate);
            if fits.is_err() {
                return ControlFlow::Break(());
            }
        }
        on_event(event)
    });
    fits?;
    answer
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

fn sampling(question: &Question, limits: &Limits) -> Result<Sampling, RequestError> {
    let stop = question.stop.strings();
    let longest = stop.iter().map(String::len).max().unwrap_or(0);
    if stop.len() > MAX_STOP || longest > MAX_STOP_BYTES {
        let count = stop.len();
        return Err(RequestError::Stop { count, longest });
    }
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
            (Some(text), _) => Media::image(decode_image(&inline_bytes(text, i)?)?),
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

fn is_data_url(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// The bytes of image number `index`: base64, with or without line breaks and padding, possibly as
/// a `data:` URL (RFC 2397).
fn inline_bytes(text: &str, index: usize) -> Result<Vec<u8>, RequestError> {
    let base64 = match is_data_url(text).then(|| text.split_once(',')) {
        None => text,
        Some(Some((header, data))) if header.to_ascii_lowercase().ends_with(";base64") => data,
        Some(_) => return Err(RequestError::DataUrl { index }),
    };
    let base64: Vec<u8> = base64
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let encoding = match base64.ends_with(b"=") {
        true => BASE64,
        false => BASE64_NOPAD,
    };
    encoding
        .decode(&base64)
        .map_err(|source| RequestError::Base64 { index, source })
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
    use crate::health::Memory;
    use crate::media::FrameSelection;
    use crate::{Device, Record, demo};

    /// The replies to a question on a machine with `available` bytes.
    fn replies(available: u64) -> Vec<Value> {
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        let engine = Device::Cpu.load(&record).expect("an engine");
        let memory = Memory {
            total: 1 << 30,
            available,
            group: None,
            process: None,
            swap: 0,
            zram: 0,
        };
        let estimator = RequestEstimator::new(engine.clone()).with_memory(memory);
        let limits = Limits {
            max_tokens: 2,
            files: false,
            media: MediaOptions::default(),
            frames: FrameSelection::Uniform(2).into(),
            ffmpeg: None,
            repetition_penalty: None,
            ignore_generation_config: false,
            parse_special: false,
        };
        let line = br#"{"id": 5, "prompt": "how many shapes are there?", "stream": true}"#;
        let question = Question::parse(line).expect("a question");
        let prepared = question.prepare(&limits).expect("no media");
        let mut replies = Vec::new();
        let mut session = engine.session();
        let reply = |reply: Reply| {
            replies.push(serde_json::from_str(&reply.line()).expect("JSON"));
        };
        let watch = |_: &Event<'_>| ControlFlow::Continue(());
        prepared.answer(&mut session, &limits, Some(&estimator), reply, watch);
        replies
    }

    /// A question that does not fit into memory gets an error and no piece of an answer.
    #[test]
    fn questions_that_do_not_fit_are_refused() {
        let replies = replies(1 << 20);
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert_eq!(replies[0]["id"], 5);
        let error = replies[0]["error"].as_str().expect("an error");
        let expected = "the request does not fit into memory: it needs about";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.contains("available 1.0 MiB of 1.0 GiB"), "{error}");
    }

    #[test]
    fn questions_that_fit_are_answered() {
        let replies = replies(512 << 20);
        let last = replies.last().expect("a reply");
        assert_eq!(last["done"], true, "{replies:?}");
    }

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
