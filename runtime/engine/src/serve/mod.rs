//! Requests and replies of the server, in two protocols: one JSON object per line and,
//! with the feature `http`, [OpenAI's](openai).
//!
//! A request of either becomes a [`Prepared`], which a session answers. Several of them are answered
//! at a time as [`Running`] requests.

mod address;
mod inline;
mod lines;
#[cfg(feature = "http")]
pub mod openai;
mod running;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::prompt::{Message, Tool, ToolSyntax};

use crate::media::VideoOptions;
use crate::sampler::Sampling;
use crate::{Constraint, Media, Request, Speculation};

pub use address::{AddressError, AddressReader};
pub use inline::InlineError;
pub use lines::{ImageSource, Question, Reply, RequestError, Stop};
pub use running::Running;

/// Maximum length of a request in bytes, enough for some images in base64.
pub const MAX_LINE: usize = 64 << 20;
/// Most stop strings of a request.
const MAX_STOP: usize = 16;
/// Most bytes of a stop string.
const MAX_STOP_BYTES: usize = 256;

/// More or longer stop strings than a request may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the request has {count} stop strings of up to {longest} bytes, at most {MAX_STOP} of \
     {MAX_STOP_BYTES} bytes are accepted"
)]
pub struct StopError {
    /// Number of strings.
    pub count: usize,
    /// Bytes of the longest one.
    pub longest: usize,
}

fn check_stop(stop: &[String]) -> Result<(), StopError> {
    let count = stop.len();
    let longest = stop.iter().map(String::len).max().unwrap_or(0);
    match count > MAX_STOP || longest > MAX_STOP_BYTES {
        true => Err(StopError { count, longest }),
        false => Ok(()),
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
    /// Drafting of tokens.
    pub speculation: Speculation,
    /// Reader of the addresses that requests in OpenAI's form name; without one they are refused.
    pub addresses: Option<Arc<dyn AddressReader>>,
    /// Form in which the model writes calls of functions
    /// ([`Engine::tool_syntax`](crate::Engine::tool_syntax)).
    pub tool_syntax: ToolSyntax,
}

impl Limits {
    /// Creates the limits of a server whose requests name neither files nor addresses, with the
    /// defaults of the checkpoint and without drafts.
    pub fn new(max_tokens: usize, frames: VideoOptions) -> Self {
        Self {
            max_tokens,
            files: false,
            media: MediaOptions::default(),
            frames,
            ffmpeg: None,
            repetition_penalty: None,
            ignore_generation_config: false,
            parse_special: false,
            speculation: Speculation::Off,
            addresses: None,
            tool_syntax: ToolSyntax::default(),
        }
    }
}

/// A request of any protocol, with decoded media.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    messages: Vec<Message>,
    media: Vec<Media>,
    sampling: Sampling,
    stop: Vec<String>,
    tools: Vec<Tool>,
    constraint: Option<Constraint>,
    /// Tokens of the answer, at most those of the limits.
    max_tokens: Option<usize>,
    ignore_eos: bool,
    raw: bool,
    logprobs: Option<usize>,
    /// Decoding time, measured here because decoding runs on a separate thread without stages.
    decoding: Duration,
}

impl Prepared {
    /// Returns the request of the engine.
    fn request(&self, limits: &Limits) -> Request<'_> {
        let wanted = self.max_tokens.unwrap_or(limits.max_tokens);
        Request {
            media: &self.media,
            options: limits.media.clone(),
            max_tokens: wanted.min(limits.max_tokens),
            ignore_eos: self.ignore_eos,
            sampling: self.sampling.clone(),
            stop: &self.stop,
            tools: &self.tools,
            constraint: self.constraint.as_ref(),
            parse_special: limits.parse_special,
            raw: self.raw,
            logprobs: self.logprobs,
            speculation: limits.speculation,
            timing: true,
            ..Request::new(&self.messages)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::health::Memory;
    use crate::media::FrameSelection;
    use crate::{Answer, AnyEngine, Device, EngineError, Record, RequestEstimator, demo, one_line};

    fn engine() -> AnyEngine {
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        Device::Cpu.load(&record).expect("an engine")
    }

    /// The estimator of requests on a machine with `available` bytes.
    fn estimator(engine: &AnyEngine, available: u64) -> RequestEstimator {
        let memory = Memory {
            total: 1 << 30,
            available,
            group: None,
            process: None,
            swap: 0,
            zram: 0,
        };
        RequestEstimator::new(engine.clone()).with_memory(memory)
    }

    /// The answer to a question on a machine with `available` bytes, and the number of events.
    fn answer(available: u64) -> (Result<Answer, EngineError>, usize) {
        let engine = engine();
        let estimator = estimator(&engine, available);
        let limits = Limits::new(2, FrameSelection::Uniform(2).into());
        let line = br#"{"id": 5, "prompt": "how many shapes are there?"}"#;
        let question = Question::parse(line).expect("a question");
        let prepared = question.prepare(&limits).expect("no media");
        let mut events = 0;
        let mut session = engine.session();
        let answer = prepared.answer(&mut session, &limits, Some(&estimator), |_| {
            events += 1;
            ControlFlow::Continue(())
        });
        (answer, events)
    }

    /// A question that does not fit into memory gets an error and no piece of an answer.
    #[test]
    fn questions_that_do_not_fit_are_refused() {
        let (answer, events) = answer(1 << 20);
        assert_eq!(events, 0);
        let error = one_line(&answer.expect_err("an error"));
        let expected = "the request does not fit into memory: it needs about";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.contains("available 1.0 MiB of 1.0 GiB"), "{error}");
    }

    #[test]
    fn questions_that_fit_are_answered() {
        let (answer, events) = answer(512 << 20);
        assert!(!answer.expect("an answer").tokens.is_empty());
        assert!(events > 0);
    }

    /// The memory that a running answer may still take is not available to the next request.
    #[test]
    fn running_answers_reserve_memory() {
        let engine = engine();
        let limits = Limits::new(20_000, FrameSelection::Uniform(2).into());
        let question = Question::parse(br#"{"prompt": "hi", "ignore_eos": true}"#);
        let prepared = question.and_then(|question| question.prepare(&limits));
        let prepared = prepared.expect("a request");
        let mut session = engine.session();
        let mut begin = |available: u64, reserved: u64| {
            let estimator = estimator(&engine, available);
            let go_on = |_: crate::Event<'_>| ControlFlow::Continue(());
            prepared.begin(&mut session, &limits, Some(&estimator), reserved, go_on)
        };
        let available = 512 << 20;
        let first = begin(available, 0).unwrap_or_else(|error| panic!("{}", one_line(&error)));
        let reserved = first.reserved_bytes();
        // Each position of the two layers has keys and values.
        assert!(reserved > 20_000, "{reserved}");
        assert!(begin(available, reserved).is_ok());
        let error = begin(available, available).err().expect("an error");
        assert!(matches!(error, EngineError::DoesNotFit(_)), "{error}");
    }
}
