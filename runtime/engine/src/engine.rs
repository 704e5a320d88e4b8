//! From a request to an answer: media, prompt, vision, prefill, decode.

mod features;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::families;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::model::{DecoderState, MediaInput, MediaKind, MediaOptions, Prompt};
use edge_lmm_models::monitor::{Monitor, Progress};
use edge_lmm_models::prompt::{Message, TextProcessor, TextStream};
use edge_lmm_ops::{KernelBackend, KvStore, argmax, probe, stage};
use serde::Serialize;
use serde_json::Value;

use self::features::{FEATURE_CACHE_BYTES, FeatureCache, MediumKey, medium_key};
use crate::error::EngineError;
use crate::generation::{GenerationConfig, Run};
use crate::media::Media;
use crate::record::Record;
use crate::sampler::{Sampler, Sampling};

/// The key-value cache grows in steps of this many positions.
const CACHE_STEP: usize = 256;

/// What to answer and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// Its media, in the order in which the messages show them.
    pub media: &'a [Media],
    /// How media are prepared.
    pub options: MediaOptions,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Go on after an end token.
    pub ignore_eos: bool,
    /// How tokens are picked.
    pub sampling: Sampling,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// The generated ids, an end token included.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that stand for pictures, video or sound.
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
    /// The model ended it with an end token.
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
    /// Media are preprocessed and the prompt is in tokens; the encoders come next.
    Prepared {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The preprocessed media; without values where their features are held already.
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

/// A loaded model with what it remembers between turns.
pub struct Engine<B: KernelBackend> {
    model: Box<dyn BuiltModel<B>>,
    text: TextProcessor,
    end_tokens: Vec<u32>,
    generation: GenerationConfig,
    device: B::Device,
    past: Option<Past<B>>,
    features: FeatureCache<B>,
}

/// The language model's state and the tokens that made it.
struct Past<B: KernelBackend> {
    state: DecoderState<B>,
    keys: Vec<TokenKey>,
}

/// A token and, if it stands for a medium, which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TokenKey {
    id: u32,
    medium: Option<MediumKey>,
}

impl<B: KernelBackend> Past<B> {
    /// Tokens at the beginning that are the same as in `keys`.
    fn shared(&self, keys: &[TokenKey]) -> usize {
        let pairs = self.keys.iter().zip(keys);
        pairs.take_while(|(a, b)| a == b).count()
    }

    fn truncate(&mut self, len: usize) {
        self.state.cache.truncate(len);
        self.keys.truncate(len);
    }
}

/// A request whose media are ready for their encoders.
struct Prepared {
    media: Vec<MediaInput>,
    keys: Vec<MediumKey>,
    prompt: Prompt,
}

impl Answer {
    /// Appends text and passes it on.
    fn give(
        &mut self,
        text: &str,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.text.push_str(text);
        on_event(Event::Text(text))
    }
}

impl<B: KernelBackend> Engine<B> {
    /// Builds the model of a record and borrows its weights (stage `load`).
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn load(record: &Record, device: B::Device) -> Result<Self, EngineError> {
        let _stage = stage::top("load");
        let info = record.info();
        let (model, weights) = record.skeleton::<B>(&device)?;
        log::debug!(
            "{}: {} with {} weights",
            record.path().display(),
            families::info(&info.files)?.title,
            weights.len()
        );
        // Memory of exactly the weights' sizes, where a device keeps pools of other sizes.
        let (model, loaded) =
            B::memory_persistent_allocations(&device, (model, record), |(mut model, record)| {
                let loaded = model.load(&mut record.store());
                (model, loaded.map_err(|error| error.to_string()))
            });
        loaded.map_err(|reason| crate::RecordError::Damaged {
            path: record.path().to_owned(),
            reason,
        })?;
        let text = TextProcessor::new(record.tokenizer(), record.template().map(str::to_owned))?
            .with_config(&info.files.config);
        let generation = GenerationConfig::new(&info.files);
        for key in generation.unsupported() {
            log::warn!("generation_config.json: {key} is not supported and has no effect");
        }
        Ok(Self {
            generation,
            end_tokens: end_tokens(&info.files.generation, &info.files.config),
            model,
            text,
            device,
            past: None,
            features: FeatureCache::new(FEATURE_CACHE_BYTES),
        })
    }

    /// Positions that the model can hold.
    pub fn context_length(&self) -> usize {
        self.model.language().context_length()
    }

    /// Where it runs.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Bytes of the language model's state at the moment.
    pub fn cache_bytes(&self) -> usize {
        self.past.as_ref().map_or(0, |past| past.state.bytes())
    }

    /// Sets whether control tokens in messages, such as `<|im_end|>`, take effect; without this
    /// they are text.
    pub fn set_parse_special(&mut self, parse: bool) {
        self.text.set_parse_special(parse);
    }

    /// Forgets earlier turns and the features of their media.
    pub fn forget(&mut self) {
        self.past = None;
        self.features.clear();
    }

    /// Answers a request; `on_event` gets text and progress as they come, and cancels the request
    /// by returning [`ControlFlow::Break`].
    ///
    /// Tokens that the prompt shares with the turn before are not computed again. A request that is
    /// cancelled during decoding gives the answer so far.
    ///
    /// # Errors
    /// If the prompt cannot be put together or does not fit, and [`ModelError::Cancelled`] if the
    /// request is cancelled before the first token. The conversation so far is kept.
    pub fn answer(
        &mut self,
        request: &Request<'_>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let start = Instant::now();
        let prepared = self.prepare(request)?;
        let event = Event::Prepared {
            prompt_tokens: prepared.prompt.ids.len(),
            media: &prepared.media,
        };
        if on_event(event).is_break() {
            return Err(ModelError::Cancelled.into());
        }
        let answer = self.generate(request, &prepared, start, &mut on_event);
        self.features.trim(&prepared.keys);
        match &answer {
            // A cancelled prefill leaves complete positions behind.
            Ok(_) | Err(EngineError::Model(ModelError::Cancelled)) => {}
            Err(_) => self.past = None,
        }
        answer
    }

    /// Encodes, prefills and decodes.
    fn generate(
        &mut self,
        request: &Request<'_>,
        prepared: &Prepared,
        start: Instant,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let prompt = &prepared.prompt;
        let reused = self.reuse(prepared, request.max_tokens)?;
        let mut tokens = self.model.language().decoder_tokens(&prompt.ids);
        let mut sampler = self.sampler(request, tokens.len())?;
        let embeddings = self.embed(prepared, reused, on_event)?;
        let mut next = self.prefill(
            embeddings,
            prepared,
            reused,
            &tokens,
            &mut sampler,
            on_event,
        )?;

        let mut stream = TextStream::default();
        let mut answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            prompt_tokens: prompt.ids.len(),
            visual_tokens: prompt.visual_tokens(),
            reused_tokens: reused,
            finish_reason: FinishReason::Length,
            first_token: start.elapsed(),
        };
        let mut position = prompt.next_position();
        while answer.tokens.len() < request.max_tokens {
            let _stage = stage::top("decode");
            let count = answer.tokens.len();
            let id = next.ok_or(EngineError::NotANumber(prompt.ids.len() + count))?;
            answer.tokens.push(id);
            tokens.push(id);
            if self.end_tokens.contains(&id) && !request.ignore_eos {
                answer.finish_reason = FinishReason::Stop;
                break;
            }
            let text = stream.push(&self.text, id)?;
            let progress = Event::Progress {
                stage: "decode",
                done: count + 1,
                total: request.max_tokens,
            };
            if answer.give(&text, on_event).is_break() || on_event(progress).is_break() {
                answer.finish_reason = FinishReason::Cancelled;
                break;
            }
            if count + 1 == request.max_tokens {
                break;
            }
            if self.state().cache.len() == self.state().cache.capacity() {
                answer.finish_reason = FinishReason::Context;
                break;
            }
            let step = self.step(id, position, prepared, &answer.tokens, on_event);
            let hidden = match step {
                Err(EngineError::Model(ModelError::Cancelled)) => {
                    answer.finish_reason = FinishReason::Cancelled;
                    break;
                }
                step => step?,
            };
            let logits = self.model.language().logits(hidden);
            next = self.pick(logits, &tokens, &mut sampler)?;
            position += 1;
        }
        // Nothing more can be cancelled.
        let _ = answer.give(&stream.finish(&self.text)?, on_event);
        Ok(answer)
    }

    fn state(&mut self) -> &mut DecoderState<B> {
        &mut self.past.as_mut().expect("prefill makes the state").state
    }

    /// Takes a generated token into the state; its hidden state.
    fn step(
        &mut self,
        id: u32,
        position: u32,
        prepared: &Prepared,
        generated: &[u32],
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let language = self.model.language();
        let past = self.past.as_mut().expect("prefill makes the state");
        if language.is_long(past.state.cache.len() + 1) != past.state.long {
            return self.start_again(prepared, generated, on_event);
        }
        let embedding = language.embed(&[id]);
        // A step is short: it is not cancelled in the middle.
        let mut report = |_| ControlFlow::Continue(());
        let mut monitor = Monitor::new(&mut report);
        let hidden = language.step(embedding, &[[position; 3]], &mut past.state, &mut monitor)?;
        past.keys.push(TokenKey { id, medium: None });
        Ok(hidden)
    }

    /// Computes everything again for a sequence that has become long (see
    /// [`is_long`](edge_lmm_models::model::LanguageModel::is_long)); the hidden state of the last
    /// of the `generated` tokens.
    fn start_again(
        &mut self,
        prepared: &Prepared,
        generated: &[u32],
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let prompt = &prepared.prompt;
        let prompt_embeddings = self.embed(prepared, 0, on_event)?;
        let language = self.model.language();
        let embeddings = Tensor::cat(vec![prompt_embeddings, language.embed(generated)], 0);
        let next = prompt.next_position();
        let positions = prompt.positions.iter().copied();
        let positions: Vec<_> = positions
            .chain((next..).take(generated.len()).map(|position| [position; 3]))
            .collect();
        let past = self.past.as_mut().expect("there is a state to start again");
        past.truncate(0);
        let mut report = report("prefill", on_event);
        let hidden = language.prefill(
            embeddings,
            &positions,
            &mut past.state,
            &mut Monitor::new(&mut report),
        )?;
        past.keys = token_keys(prompt, &prepared.keys);
        let generated = generated.iter();
        past.keys
            .extend(generated.map(|&id| TokenKey { id, medium: None }));
        Ok(hidden)
    }

    /// Media and prompt, checked against the model (stage `preprocess`). A medium whose features
    /// are held is not prepared again.
    fn prepare(&self, request: &Request<'_>) -> Result<Prepared, EngineError> {
        let _stage = stage::top("preprocess");
        if request.options.image_tokens.is_some() && !self.model.resizes_images() {
            return Err(ModelError::FixedImageTokens.into());
        }
        self.check_text(request.messages)?;
        let mut keys = Vec::with_capacity(request.media.len());
        let mut media = Vec::with_capacity(request.media.len());
        let options = MediaOptions {
            most_tokens: self.context_length(),
            ..request.options.clone()
        };
        for medium in request.media {
            let key = medium_key(medium, &options);
            // A capture is to show what went into the encoder.
            let held = self.features.input(key).filter(|_| !probe::active());
            media.push(match held {
                Some(input) => input,
                None => self.prepare_medium(medium, &options)?,
            });
            keys.push(key);
        }
        let prompt = self.model.prompt(&self.text, request.messages, &media)?;
        self.check_prompt(&prompt)?;
        log::debug!(
            "prompt: {} tokens, {} of them of {} media",
            prompt.ids.len(),
            prompt.visual_tokens(),
            media.len()
        );
        capture_inputs(&media, &prompt);
        Ok(Prepared {
            media,
            keys,
            prompt,
        })
    }

    fn prepare_medium(
        &self,
        medium: &Media,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        match medium {
            Media::Image(image) => self.model.image(image, options),
            Media::Video {
                frames,
                frames_per_second,
            } => self.model.video(frames, *frames_per_second, options),
            Media::Audio {
                samples,
                sample_rate,
            } => self.model.audio(samples, *sample_rate, options),
        }
    }

    /// Refuses text that cannot fit before it is tokenized, which takes many times its memory.
    fn check_text(&self, messages: &[Message]) -> Result<(), EngineError> {
        let bytes: usize = messages.iter().map(Message::text_len).sum();
        let context = self.context_length();
        // Four bytes per token are common; only beyond that are the tokens looked at.
        let fits = |longest: usize| bytes <= context.saturating_mul(longest);
        match fits(4) || fits(self.text.longest_token()) {
            true => Ok(()),
            false => Err(EngineError::TextTooLong { bytes, context }),
        }
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), EngineError> {
        let tokens = prompt.ids.len();
        let context = self.context_length();
        if tokens == 0 {
            return Err(ModelError::Prompt("it is empty".to_owned()).into());
        }
        if tokens >= context {
            return Err(EngineError::TooLong {
                tokens,
                visual: prompt.visual_tokens(),
                context,
            });
        }
        let vocabulary = self.model.language().vocabulary();
        if let Some(&id) = prompt.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(EngineError::TokenOutOfRange { id, vocabulary });
        }
        Ok(())
    }

    /// Makes room for the prompt and `max_tokens` more and keeps what the state shares with the
    /// prompt; the number of tokens that need not be computed again.
    fn reuse(&mut self, prepared: &Prepared, max_tokens: usize) -> Result<usize, EngineError> {
        let language = self.model.language();
        let tokens = prepared.prompt.ids.len();
        let needed = language.positions(tokens, max_tokens);
        if let Some(past) = &mut self.past {
            let keys = token_keys(&prepared.prompt, &prepared.keys);
            let shared = past.shared(&keys);
            // The last token's hidden state is needed, so that one is always computed.
            let shared = match language.is_long(tokens) == past.state.long {
                true => language.reusable(shared.min(tokens - 1)),
                false => 0,
            };
            past.truncate(shared);
            let capacity = past.state.cache.capacity();
            let wanted = capacity_for(needed, capacity, language.context_length());
            // Without memory for both caches, the old one goes first.
            if capacity >= needed || (shared > 0 && past.state.cache.grow(wanted).is_ok()) {
                log::debug!("{shared} of {tokens} prompt tokens are in the cache");
                return Ok(shared);
            }
        }
        self.past = None;
        let capacity = capacity_for(needed, 0, language.context_length());
        let shape = language.cache_shape(capacity);
        log::debug!(
            "key-value cache for {capacity} positions: {} bytes",
            shape.bytes()
        );
        let state = DecoderState::new(shape, &self.device).map_err(ModelError::from)?;
        self.past = Some(Past {
            state,
            keys: Vec::new(),
        });
        Ok(0)
    }

    /// Embeddings of the prompt from token `from` on, media encoded where they are needed.
    fn embed(
        &mut self,
        prepared: &Prepared,
        from: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let prompt = &prepared.prompt;
        let mut parts = Vec::new();
        let mut at = from;
        for span in &prompt.spans {
            let end = span.start + span.len;
            if end <= at {
                continue;
            }
            if span.start > at {
                parts.push(self.model.language().embed(&prompt.ids[at..span.start]));
                at = span.start;
            }
            let features = self.encode(prepared, span.medium, on_event)?;
            parts.push(features.narrow(0, at - span.start, end - at));
            at = end;
        }
        if at < prompt.ids.len() {
            parts.push(self.model.language().embed(&prompt.ids[at..]));
        }
        Ok(Tensor::cat(parts, 0))
    }

    /// The features of a medium; the same medium is encoded once.
    fn encode(
        &mut self,
        prepared: &Prepared,
        medium: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let key = prepared.keys[medium];
        if let Some(features) = self.features.get(key) {
            return Ok(features);
        }
        let input = &prepared.media[medium];
        let stage = match input.kind {
            MediaKind::Image | MediaKind::Video => "vision",
            MediaKind::Audio => "audio",
        };
        let mut report = report(stage, on_event);
        let features = self.model.encode(input, &mut Monitor::new(&mut report))?;
        self.features.insert(key, input, features.clone());
        Ok(features)
    }

    /// Takes the prompt into the state (stage `prefill`); the first token, see
    /// [`Self::pick`].
    fn prefill(
        &mut self,
        embeddings: Tensor<B, 2>,
        prepared: &Prepared,
        from: usize,
        tokens: &[u32],
        sampler: &mut Sampler,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Option<u32>, EngineError> {
        let _stage = stage::top("prefill");
        let positions = &prepared.prompt.positions[from..];
        let past = self.past.as_mut().expect("reuse has made the state");
        let language = self.model.language();
        let mut report = report("prefill", on_event);
        let mut monitor = Monitor::new(&mut report);
        past.keys = token_keys(&prepared.prompt, &prepared.keys);
        let hidden = language.prefill(embeddings, positions, &mut past.state, &mut monitor);
        // A cancelled prefill has taken in some of its chunks only.
        if hidden.is_err() {
            past.keys.truncate(past.state.cache.len());
        }
        let logits = language.logits(hidden?);
        if probe::active() {
            let shown = logits.clone().flatten::<1>(0, 1);
            probe::capture("logits_first", &shown);
        }
        self.pick(logits, tokens, sampler)
    }

    /// Picks tokens as the request and the checkpoint say, after `prompt` tokens.
    fn sampler(&self, request: &Request<'_>, prompt: usize) -> Result<Sampler, EngineError> {
        let run = Run {
            prompt,
            max_tokens: request.max_tokens,
            end_tokens: &self.end_tokens,
        };
        let processors = self.generation.processors(&request.sampling, run)?;
        Ok(Sampler::new(request.sampling.clone(), processors))
    }

    /// The token that follows `tokens` by its scores; `None` if one is not a number. Reading is where a device that
    /// works asynchronously says what went wrong before.
    fn pick(
        &self,
        scores: Tensor<B, 2>,
        tokens: &[u32],
        sampler: &mut Sampler,
    ) -> Result<Option<u32>, EngineError> {
        let picked = if sampler.takes_argmax() {
            argmax(scores)
        } else {
            let scores = scores.try_into_data();
            scores.map(|scores| sampler.pick(scores.as_slice().expect("scores are f32"), tokens))
        };
        if let Some(failure) = B::memory_failure(&self.device) {
            return Err(EngineError::Memory(failure));
        }
        picked.map_err(|error| EngineError::Compute(error.to_string()))
    }
}

/// The tokens at which an answer ends, from `generation_config.json` or else `config.json`, its
/// top or the language model's section.
fn end_tokens(generation: &Option<Value>, config: &Value) -> Vec<u32> {
    let ids = |value: &Value| -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match value.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let from_generation = generation.as_ref().map(ids).unwrap_or_default();
    [
        from_generation,
        ids(config),
        ids(config.get("text_config").unwrap_or(&Value::Null)),
    ]
    .into_iter()
    .find(|ids| !ids.is_empty())
    .unwrap_or_default()
}

/// Positions to allocate where `needed` are needed and `current` are there: rounded up, and at
/// least half as many again, so that a growing conversation copies its cache a few times only.
fn capacity_for(needed: usize, current: usize, context: usize) -> usize {
    let grown = needed.max(current + current / 2);
    grown.next_multiple_of(CACHE_STEP).min(context).max(needed)
}

/// Passes the progress of a stage on.
fn report(
    stage: &'static str,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> impl FnMut(Progress) -> ControlFlow<()> {
    move |Progress { done, total }| on_event(Event::Progress { stage, done, total })
}

/// The prompt's tokens, those of media with the medium's key.
fn token_keys(prompt: &Prompt, media: &[MediumKey]) -> Vec<TokenKey> {
    let mut keys: Vec<TokenKey> = prompt
        .ids
        .iter()
        .map(|&id| TokenKey { id, medium: None })
        .collect();
    for span in &prompt.spans {
        for key in &mut keys[span.start..span.start + span.len] {
            key.medium = Some(media[span.medium]);
        }
    }
    keys
}

/// What goes into the model, for comparison with a reference.
fn capture_inputs(media: &[MediaInput], prompt: &Prompt) {
    if !probe::active() {
        return;
    }
    let as_floats = |values: &[u32]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    probe::capture_values("input_ids", &[prompt.ids.len()], &as_floats(&prompt.ids));
    for axis in 0..3 {
        let axis: Vec<f32> = prompt.positions.iter().map(|p| p[axis] as f32).collect();
        probe::capture_values("position_ids", &[1, axis.len()], &axis);
    }
    let delta = prompt.next_position() as f32 - prompt.ids.len() as f32;
    probe::capture_values("rope_delta", &[1, 1], &[delta]);
    for (i, medium) in media.iter().enumerate() {
        if medium.kind != MediaKind::Audio && medium.grid != [0; 3] {
            probe::capture_values("grid_thw", &[1, 3], &medium.grid.map(|n| n as f32));
        }
        let name = match medium.kind {
            // Sounds without padding differ in length, so that they make no tensor together.
            MediaKind::Audio if medium.shape != media[0].shape => format!("input_features_{i}"),
            MediaKind::Audio => "input_features".to_owned(),
            MediaKind::Image | MediaKind::Video => "pixel_values".to_owned(),
        };
        probe::capture_values(&name, &medium.shape, &medium.values);
    }
}
