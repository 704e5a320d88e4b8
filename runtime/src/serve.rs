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

use anyhow::Context;
use data_encoding::{BASE64, BASE64_NOPAD};
use edge_lmm_models::model::MediaOptions;
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_ops::stage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::is_penalty;
use crate::media::{FrameSelection, MediaKind, Source, decode_image};
use crate::report::AnswerReport;
use crate::sampler::Sampling;
use crate::{AnyEngine, Event, Media, Request};

/// Longest request in bytes: room for some images in base64.
pub const MAX_LINE: usize = 64 << 20;
/// Most images of a request.
const MAX_IMAGES: usize = 64;

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Comes back with every reply.
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
}

/// Answers one line; `reply` gets the lines to send. The work stops when `cancelled` says so: then
/// nobody waits for the reply.
pub fn answer(
    engine: &mut AnyEngine,
    line: &[u8],
    limits: &Limits,
    mut reply: impl FnMut(Reply),
    cancelled: impl Fn() -> bool,
) {
    if cancelled() {
        return;
    }
    let question: Question = match serde_json::from_slice(line) {
        Ok(question) => question,
        Err(error) => {
            return reply(Reply::Error {
                id: id_of(line),
                error: format!("the request cannot be read: {error}"),
            });
        }
    };
    let id = question.id.clone();
    if let Err(error) = try_answer(engine, question, limits, &mut reply, cancelled) {
        // A measurement that was begun ends with its question.
        stage::finish();
        let error = format!("{error:#}");
        reply(Reply::Error { id, error });
    }
}

/// The id of a request that is no question.
fn id_of(line: &[u8]) -> Value {
    serde_json::from_slice::<Value>(line)
        .ok()
        .and_then(|value| value.get("id").cloned())
        .unwrap_or(Value::Null)
}

fn try_answer(
    engine: &mut AnyEngine,
    question: Question,
    limits: &Limits,
    reply: &mut impl FnMut(Reply),
    cancelled: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let prompt = question
        .prompt
        .as_deref()
        .context("the request has no \"prompt\": expected {\"prompt\": \"What is this?\", ...}")?;
    let sampling = sampling(&question, limits)?;
    stage::record(engine.device().synchronize());
    let media = media(&question, limits)?;
    let messages = messages(&question, prompt, &media);
    let wanted = question.max_tokens.unwrap_or(limits.max_tokens);
    let request = Request {
        messages: &messages,
        media: &media,
        options: limits.media.clone(),
        max_tokens: wanted.min(limits.max_tokens),
        ignore_eos: question.ignore_eos,
        sampling,
    };
    let answer = engine.answer(&request, |event| {
        match event {
            Event::Text(delta) if question.stream => reply(Reply::Delta {
                id: question.id.clone(),
                delta: delta.to_owned(),
            }),
            _ => {}
        }
        match cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    let report = AnswerReport::new(&answer, &stage::finish());
    reply(Reply::Done {
        id: question.id,
        done: true,
        report: Box::new(report),
    });
    Ok(())
}

fn sampling(question: &Question, limits: &Limits) -> anyhow::Result<Sampling> {
    let top_p = question.top_p.unwrap_or(1.0);
    anyhow::ensure!(
        question.temperature >= 0.0 && question.temperature.is_finite(),
        "temperature is {}, expected 0 or more",
        question.temperature
    );
    anyhow::ensure!(
        top_p > 0.0 && top_p <= 1.0,
        "top_p is {top_p}, expected more than 0, at most 1"
    );
    if let Some(penalty) = question.repetition_penalty {
        anyhow::ensure!(
            is_penalty(penalty),
            "repetition_penalty is {penalty}, expected a number above 0"
        );
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

fn media(question: &Question, limits: &Limits) -> anyhow::Result<Vec<Media>> {
    let _stage = stage::top("media");
    anyhow::ensure!(
        question.images.len() <= MAX_IMAGES,
        "the request has {} images, at most {MAX_IMAGES} are accepted",
        question.images.len()
    );
    let open = |path: &PathBuf, kind| {
        anyhow::ensure!(
            limits.files,
            "files are not allowed: send images in base64 (the server runs with --no-files)"
        );
        Ok(Media::read(&Source::file(path)?, kind, limits.frames)?)
    };
    let mut media = Vec::new();
    for (i, image) in question.images.iter().enumerate() {
        let inline = match image {
            ImageSource::Inline { base64 } => Some(base64.as_str()),
            ImageSource::File(text) => is_data_url(text).then_some(text.as_str()),
        };
        media.push(match (inline, image) {
            (Some(text), _) => Media::Image(decode_image(&inline_bytes(text, i)?)?),
            (None, ImageSource::File(path)) => open(&path.into(), MediaKind::Image)?,
            (None, ImageSource::Inline { .. }) => unreachable!("inline images have text"),
        });
    }
    let files = [
        (&question.video, MediaKind::Video),
        (&question.audio, MediaKind::Audio),
    ];
    for (path, kind) in files {
        if let Some(path) = path {
            media.push(open(path, kind)?);
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
fn inline_bytes(text: &str, index: usize) -> anyhow::Result<Vec<u8>> {
    let base64 = match is_data_url(text).then(|| text.split_once(',')) {
        None => text,
        Some(Some((header, data))) if header.to_ascii_lowercase().ends_with(";base64") => data,
        Some(_) => anyhow::bail!(
            "images[{index}] is a data: URL without base64: expected data:image/png;base64,..."
        ),
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
        .with_context(|| format!("invalid base64 in images[{index}]"))
}

/// Instructions, and a turn that shows the media before it asks.
fn messages(question: &Question, prompt: &str, media: &[Media]) -> Vec<Message> {
    let mut content: Vec<Content> = media
        .iter()
        .map(|medium| Content::Media(medium.kind()))
        .collect();
    content.push(Content::Text(prompt.to_owned()));
    let system = question.system.clone();
    let system = system.map(|text| Message::text(Role::System, text));
    let user = Message {
        role: Role::User,
        content,
    };
    system.into_iter().chain([user]).collect()
}
