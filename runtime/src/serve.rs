//! Requests and replies of the server: one JSON object per line.
//!
//! ```text
//! {"id": 1, "prompt": "What is this?", "images": ["/data/cat.jpg"], "max_tokens": 64}
//! {"id": 1, "done": true, "text": "A cat.", "tokens": [32, 8251, ...], ...}
//! {"id": 2, "prompt": "And this?", "images": [{"base64": "iVBORw0K..."}], "stream": true}
//! {"id": 2, "delta": "A"}
//! {"id": 2, "delta": " dog."}
//! {"id": 2, "done": true, "text": "A dog.", ...}
//! {"id": 3, "error": "..."}
//! ```
//! Requests do not see each other: each is a conversation of its own.

use std::path::PathBuf;

use data_encoding::BASE64;
use edge_lmm_models::model::MediaOptions;
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_ops::stage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::is_penalty;
use crate::media::{FrameSelection, decode_image, load_audio, load_image, load_video};
use crate::report::AnswerReport;
use crate::sampler::Sampling;
use crate::{AnyEngine, Media, Request};

/// Longest request in bytes: room for some pictures in base64.
pub const MAX_LINE: usize = 64 << 20;
/// Most pictures of a request.
const MAX_IMAGES: usize = 64;

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Comes back with every reply.
    pub id: Value,
    /// The question.
    pub prompt: String,
    /// Instructions for the model.
    pub system: Option<String>,
    /// Pictures.
    pub images: Vec<Picture>,
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

/// A picture of a question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Picture {
    /// A file that the server can read.
    File(PathBuf),
    /// The file's content.
    Inline {
        /// In base64.
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
    /// Of questions that give none; the checkpoint's if `None`.
    pub repetition_penalty: Option<f32>,
    /// Whether the checkpoint's `generation_config.json` has no influence on the logits.
    pub ignore_generation_config: bool,
}

/// Answers one line; `reply` gets the lines to send.
pub fn answer(engine: &mut AnyEngine, line: &[u8], limits: &Limits, mut reply: impl FnMut(Reply)) {
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
    if let Err(error) = try_answer(engine, question, limits, &mut reply) {
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
) -> anyhow::Result<()> {
    let sampling = sampling(&question, limits)?;
    stage::record(engine.device().synchronize());
    let media = media(&question, limits)?;
    let messages = messages(&question, &media);
    let wanted = question.max_tokens.unwrap_or(limits.max_tokens);
    let request = Request {
        messages: &messages,
        media: &media,
        options: limits.media.clone(),
        max_tokens: wanted.min(limits.max_tokens),
        ignore_eos: question.ignore_eos,
        sampling,
    };
    engine.forget();
    let answer = engine.answer(&request, |delta| {
        if question.stream {
            reply(Reply::Delta {
                id: question.id.clone(),
                delta: delta.to_owned(),
            });
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
        "the request has {} pictures, at most {MAX_IMAGES} are taken",
        question.images.len()
    );
    let allow_file = || {
        anyhow::ensure!(
            limits.files,
            "this server reads no files; send pictures as {{\"base64\": ...}}"
        );
        Ok(())
    };
    let mut media = Vec::new();
    for picture in &question.images {
        media.push(Media::Image(match picture {
            Picture::File(path) => {
                allow_file()?;
                load_image(path)?
            }
            Picture::Inline { base64 } => {
                let bytes = BASE64.decode(base64.as_bytes());
                let bytes =
                    bytes.map_err(|error| anyhow::anyhow!("a picture is no base64: {error}"))?;
                decode_image(&bytes)?
            }
        }));
    }
    if let Some(path) = &question.video {
        allow_file()?;
        let video = load_video(path, FrameSelection::All)?;
        media.push(Media::Video {
            frames: video.frames,
            frames_per_second: video.frames_per_second,
        });
    }
    if let Some(path) = &question.audio {
        allow_file()?;
        let audio = load_audio(path)?;
        media.push(Media::Audio {
            samples: audio.samples,
            sample_rate: audio.sample_rate,
        });
    }
    Ok(media)
}

/// Instructions, and a turn that shows the media before it asks.
fn messages(question: &Question, media: &[Media]) -> Vec<Message> {
    let mut content: Vec<Content> = media
        .iter()
        .map(|medium| Content::Media(medium.kind()))
        .collect();
    content.push(Content::Text(question.prompt.clone()));
    let system = question.system.clone();
    let system = system.map(|text| Message::text(Role::System, text));
    let user = Message {
        role: Role::User,
        content,
    };
    system.into_iter().chain([user]).collect()
}
