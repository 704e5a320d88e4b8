//! Requests and replies of the server: one JSON object per line.
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
//! Each request is a conversation of its own. The encoder's output of an image and the beginning of
//! a prompt are computed once for requests that share them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use data_encoding::{BASE64, BASE64_NOPAD, DecodeError};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::prompt::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::is_penalty;
use crate::media::{
    FrameSelection, MediaBudget, MediaError, MediaKind, Source, decode_image, user_message,
};
use crate::memory::RequestEstimate;
use crate::report::AnswerReport;
use crate::sampler::Sampling;
use crate::{Answer, AnySession, EngineError, Event, Media, Request, one_line};

/// Longest request in bytes: room for some images in base64.
pub const MAX_LINE: usize = 64 << 20;
/// Most images of a request.
const MAX_IMAGES: usize = 64;
/// Longest `id` in bytes: every reply carries it.
const MAX_ID: usize = 256;

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Comes back with every reply: text, a number or null.
    pub id: Value,
    /// The question.
    pub prompt: Option<String>,
    /// Instructions for the model.
    pub system: Option<String>,
    /// Images.
    pub images: Vec<ImageSource>,
    /// A video file.
    pub video: Option<PathBuf>,
    /// A sound file.
    pub audio: Option<PathBuf>,
    /// Tokens to generate at most; the server has a limit of its own.
    pub max_tokens: Option<usize>,
    /// Go on after the model says that it is done.
    pub ignore_eos: bool,
    /// Randomness.
    pub temperature: f32,
    /// Pick among so many best tokens, 0 for all.
    pub top_k: usize,
    /// Pick among the best tokens of this probability, 1 if not given.
    pub top_p: Option<f32>,
    /// Start of the random sequence.
    pub seed: u64,
    /// Makes tokens that were there before less likely, 1 is off; the server's if not given.
    pub repetition_penalty: Option<f32>,
    /// Send the text as it comes.
    pub stream: bool,
}

/// An image of a question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ImageSource {
    /// A file that the server can read, or a `data:` URL.
    File(String),
    /// The file's content.
    Inline {
        /// In base64, also as a `data:` URL.
        base64: String,
    },
}

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The line is not a request.
    #[error("the request cannot be read: {0}")]
    Json(serde_json::Error),
    /// The question is missing.
    #[error("the request has no \"prompt\": expected {{\"prompt\": \"What is this?\", ...}}")]
    NoPrompt,
    /// A temperature that gives no distribution.
    #[error("temperature is {0}, expected 0 or more")]
    Temperature(f32),
    /// A probability out of range.
    #[error("top_p is {0}, expected more than 0, at most 1")]
    TopP(f32),
    /// A penalty out of range.
    #[error("repetition_penalty is {0}, expected a number above 0")]
    RepetitionPenalty(f32),
    /// More images than a request may have.
    #[error("the request has {0} images, at most {MAX_IMAGES} are accepted")]
    TooManyImages(usize),
    /// A file where none may be named.
    #[error("files are not allowed: send images in base64")]
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
        /// What is wrong.
        source: DecodeError,
    },
    /// An image, video or sound.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// A line of the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// Further text.
    Delta {
        /// The question's.
        id: Value,
        /// The text.
        delta: String,
    },
    /// The whole answer.
    Done {
        /// The question's.
        id: Value,
        /// `true`
        done: bool,
        /// The answer.
        #[serde(flatten)]
        report: Box<AnswerReport>,
    },
    /// There is no answer.
    Error {
        /// The question's, as far as it could be read.
        id: Value,
        /// Why.
        error: String,
    },
}

impl Reply {
    /// An error that belongs to no question.
    pub fn error(error: String) -> Self {
        Self::Error {
            id: Value::Null,
            error,
        }
    }

    /// The line, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}

/// What the server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// Whether questions may name files.
    pub files: bool,
    /// How media are prepared.
    pub media: MediaOptions,
    /// Frames of a video that are used.
    pub frames: FrameSelection,
    /// The repetition penalty of questions that give none; the checkpoint's if `None`.
    pub repetition_penalty: Option<f32>,
    /// Whether the checkpoint's `generation_config.json` has no influence on the logits.
    pub ignore_generation_config: bool,
    /// Whether control tokens in questions take effect.
    pub parse_special: bool,
}

/// A question whose media are decoded.
#[derive(Debug, Clone)]
pub struct Prepared {
    question: Question,
    media: Vec<Media>,
    messages: Vec<Message>,
    sampling: Sampling,
    /// Time that decoding took; on a thread of its own, so that no stage records it.
    decoding: Duration,
}

impl Question {
    /// Reads a line.
    ///
    /// # Errors
    /// The reply to a line that is no question.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let question: Self = serde_json::from_slice(line).map_err(|error| Reply::Error {
            id: id_of(line),
            error: one_line(&RequestError::Json(error)),
        })?;
        match is_id(&question.id) {
            true => Ok(question),
            false => Err(Reply::error(format!(
                "\"id\" is neither null, a number nor text of at most {MAX_ID} bytes"
            ))),
        }
    }

    /// Whether it shows images, a video or a sound.
    pub fn has_media(&self) -> bool {
        !self.images.is_empty() || self.video.is_some() || self.audio.is_some()
    }

    /// Checks the question and decodes its media.
    ///
    /// # Errors
    /// The reply to a question that cannot be answered.
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
    /// Answers the question; `reply` gets the lines to send. With an `estimate`, a question that
    /// does not fit into memory is refused before anything is encoded. `watch` sees every event and
    /// cancels the work by breaking: then nobody waits for the reply.
    pub fn answer(
        &self,
        session: &mut AnySession,
        limits: &Limits,
        estimate: Option<&RequestEstimate>,
        mut reply: impl FnMut(Reply),
        mut watch: impl FnMut(&Event<'_>) -> ControlFlow<()>,
    ) {
        let id = &self.question.id;
        let answer = self.generate(session, limits, estimate, |event| {
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
        estimate: Option<&RequestEstimate>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let wanted = self.question.max_tokens.unwrap_or(limits.max_tokens);
        let request = Request {
            media: &self.media,
            options: limits.media.clone(),
            max_tokens: wanted.min(limits.max_tokens),
            ignore_eos: self.question.ignore_eos,
            sampling: self.sampling.clone(),
            parse_special: limits.parse_special,
            timing: true,
            ..Request::new(&self.messages)
        };
        let mut fits = Ok(());
        let answer = session.answer(&request, |event| {
            if let (
                Some(estimate),
                Event::Prepared {
                    prompt_tokens,
                    media,
                },
            ) = (estimate, &event)
            {
                let demand = estimate.demand(media, *prompt_tokens, request.max_tokens);
                fits = estimate.check(&demand);
                if fits.is_err() {
                    return ControlFlow::Break(());
                }
            }
            on_event(event)
        });
        fits?;
        answer
    }
}

fn is_id(id: &Value) -> bool {
    match id {
        Value::Null | Value::Number(_) => true,
        Value::String(text) => text.len() <= MAX_ID,
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// The id of a request that is no question.
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
    let temperature = question.temperature;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(RequestError::Temperature(temperature));
    }
    let top_p = question.top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(RequestError::TopP(top_p));
    }
    if let Some(penalty) = question.repetition_penalty.filter(|&p| !is_penalty(p)) {
        return Err(RequestError::RepetitionPenalty(penalty));
    }
    Ok(Sampling {
        temperature: question.temperature,
        top_k: question.top_k,
        top_p,
        seed: question.seed,
        repetition_penalty: question.repetition_penalty.or(limits.repetition_penalty),
        ignore_generation_config: limits.ignore_generation_config,
    })
}

fn media(question: &Question, limits: &Limits) -> Result<Vec<Media>, RequestError> {
    if question.images.len() > MAX_IMAGES {
        return Err(RequestError::TooManyImages(question.images.len()));
    }
    let open = |path: &PathBuf, kind| {
        if !limits.files {
            return Err(RequestError::FilesRefused);
        }
        Ok(Media::read(&Source::file(path)?, kind, limits.frames)?)
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

/// Instructions, and a turn that shows the media before it asks.
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
        let estimate = RequestEstimate::new(engine.clone()).with_memory(memory);
        let limits = Limits {
            max_tokens: 2,
            files: false,
            media: MediaOptions::default(),
            frames: FrameSelection::Uniform(2),
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
        prepared.answer(&mut session, &limits, Some(&estimate), reply, watch);
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
            error.starts_with("the request cannot be read: unknown field"),
            "{error}"
        );
        assert!(
            error.len() < 3000 && !error.contains(char::is_control),
            "{error}"
        );
    }
}
