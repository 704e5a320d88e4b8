//! From a request to an answer: media, prompt, vision, prefill, decode.

use std::collections::HashMap;
use std::rc::Rc;

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::family::{self, BuiltModel};
use edge_lmm_models::model::{DecoderState, MediaInput, MediaKind, MediaOptions, Prompt};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{Message, TextProcessor, TextStream};
use edge_lmm_models::weights::Weights;
use edge_lmm_ops::{KernelBackend, KvStore, argmax, probe, stage};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::error::EngineError;
use crate::record::Record;
use crate::sampler::{Sampler, Sampling};

/// A decoded medium.
#[derive(Debug, Clone)]
pub enum Media {
    /// A still picture.
    Image(RgbImage),
    /// A sequence of frames.
    Video {
        /// The frames.
        frames: Vec<RgbImage>,
        /// Their rate.
        frames_per_second: f32,
    },
    /// A sound in one channel.
    Audio {
        /// Samples from -1 to 1.
        samples: Vec<f32>,
        /// Samples per second.
        sample_rate: u32,
    },
}

impl Media {
    /// What it is.
    pub fn kind(&self) -> MediaKind {
        match self {
            Self::Image(_) => MediaKind::Image,
            Self::Video { .. } => MediaKind::Video,
            Self::Audio { .. } => MediaKind::Audio,
        }
    }
}

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
    /// Whether an end token ended it (or else the limit).
    pub finished: bool,
}

/// A loaded model with what it remembers between turns.
pub struct Engine<B: KernelBackend> {
    model: Box<dyn BuiltModel<B>>,
    text: TextProcessor,
    end_tokens: Vec<u32>,
    device: B::Device,
    past: Option<Past<B>>,
    features: HashMap<u128, Rc<Tensor<B, 2>>>,
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
    medium: Option<u128>,
}

impl<B: KernelBackend> Engine<B> {
    /// Builds the model of a record and borrows its weights (stage `load`).
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn load(record: &Record, device: B::Device) -> Result<Self, EngineError> {
        let _stage = stage::top("load");
        let info = record.info();
        let weights = Weights::<B>::new(device.clone(), |spec| {
            let format = info.formats.get(&spec.name);
            format
                .map(|format| format.0)
                .ok_or_else(|| ModelError::MissingWeight(spec.name.clone()))
        });
        let model = family::build(&info.files, &weights)?;
        record.check_weights(&weights.into_specs())?;
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
        Ok(Self {
            end_tokens: end_tokens(&info.files.generation, &info.files.config),
            model,
            text,
            device,
            past: None,
            features: HashMap::new(),
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

    /// Forgets the turns before.
    pub fn forget(&mut self) {
        self.past = None;
        self.features.clear();
    }

    /// Answers; `on_text` gets the text as it comes.
    ///
    /// # Errors
    /// If the prompt cannot be put together or does not fit.
    pub fn answer(
        &mut self,
        request: &Request<'_>,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, EngineError> {
        let (media, prompt) = self.prepare(request)?;
        let language = self.model.language();
        let capacity = language.positions(prompt.ids.len(), request.max_tokens);
        let hashes: Vec<u128> = media.iter().map(hash).collect();
        let keys = token_keys(&prompt, &hashes);
        let reused = self.reuse(&keys, capacity)?;
        let embeddings = self.embed(&prompt, &media, &hashes, reused);
        let mut sampler = Sampler::new(request.sampling.clone());
        let mut next = self.prefill(embeddings, &prompt, reused, &mut sampler)?;
        self.keep_features(&hashes);

        let mut stream = TextStream::default();
        let mut answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            prompt_tokens: prompt.ids.len(),
            visual_tokens: prompt.spans.iter().map(|span| span.len).sum(),
            reused_tokens: reused,
            finished: false,
        };
        let mut position = prompt.next_position();
        let mut give = |text: String, answer: &mut Answer| {
            if !text.is_empty() {
                on_text(&text);
                answer.text.push_str(&text);
            }
        };
        while answer.tokens.len() < request.max_tokens {
            let _stage = stage::top("decode");
            let count = answer.tokens.len();
            let id = next.ok_or(EngineError::NotANumber(prompt.ids.len() + count))?;
            answer.tokens.push(id);
            let ended = self.end_tokens.contains(&id);
            if ended && !request.ignore_eos {
                answer.finished = true;
                break;
            }
            give(stream.push(&self.text, id)?, &mut answer);
            let past = self.past.as_mut().expect("prefill has filled the state");
            let cache = &past.state.cache;
            if cache.len() == cache.capacity() || count + 1 == request.max_tokens {
                break;
            }
            let language = self.model.language();
            let hidden = if language.is_long(cache.len() + 1) == past.state.long {
                let embedding = language.embed(&[id]);
                language.step(embedding, &[[position; 3]], &mut past.state)
            } else {
                self.start_again(&prompt, &media, &hashes, &answer.tokens)
            };
            next = self.pick(self.model.language().logits(hidden), &mut sampler)?;
            let past = self.past.as_mut().expect("a step leaves the state there");
            past.keys.push(TokenKey { id, medium: None });
            position += 1;
        }
        give(stream.finish(&self.text)?, &mut answer);
        Ok(answer)
    }

    /// Computes everything again for a sequence that has become long (see
    /// [`is_long`](edge_lmm_models::model::LanguageModel::is_long)); the hidden state of the last of the `generated` tokens.
    fn start_again(
        &mut self,
        prompt: &Prompt,
        media: &[MediaInput],
        hashes: &[u128],
        generated: &[u32],
    ) -> Tensor<B, 2> {
        let prompt_embeddings = self.embed(prompt, media, hashes, 0);
        let language = self.model.language();
        let embeddings = Tensor::cat(vec![prompt_embeddings, language.embed(generated)], 0);
        let next = prompt.next_position();
        let positions = prompt.positions.iter().copied();
        let positions: Vec<_> = positions
            .chain((next..).take(generated.len()).map(|position| [position; 3]))
            .collect();
        let past = self.past.as_mut().expect("there is a state to start again");
        past.state.cache.truncate(0);
        language.prefill(embeddings, &positions, &mut past.state)
    }

    /// Media and prompt, checked against the model (stage `preprocess`).
    fn prepare(&self, request: &Request<'_>) -> Result<(Vec<MediaInput>, Prompt), EngineError> {
        let _stage = stage::top("preprocess");
        let media = request
            .media
            .iter()
            .map(|medium| match medium {
                Media::Image(image) => self.model.image(image, &request.options),
                Media::Video {
                    frames,
                    frames_per_second,
                } => self
                    .model
                    .video(frames, *frames_per_second, &request.options),
                Media::Audio {
                    samples,
                    sample_rate,
                } => self.model.audio(samples, *sample_rate, &request.options),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let prompt = self.model.prompt(&self.text, request.messages, &media)?;
        let tokens = prompt.ids.len();
        let context = self.context_length();
        if tokens == 0 {
            return Err(ModelError::Prompt("it is empty".to_owned()).into());
        }
        if tokens >= context {
            return Err(EngineError::TooLong {
                tokens,
                visual: prompt.spans.iter().map(|span| span.len).sum(),
                context,
            });
        }
        let vocabulary = self.model.language().vocabulary();
        if let Some(&id) = prompt.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(EngineError::TokenOutOfRange { id, vocabulary });
        }
        capture_inputs(&media, &prompt);
        Ok((media, prompt))
    }

    /// Keeps what the state shares with the new prompt, or makes a new state; how many tokens
    /// need not be computed again.
    fn reuse(&mut self, keys: &[TokenKey], capacity: usize) -> Result<usize, EngineError> {
        if let Some(past) = &mut self.past {
            let shared = past
                .keys
                .iter()
                .zip(keys)
                .take_while(|(a, b)| a == b)
                .count();
            // The last token's hidden state is needed, so that one is always computed.
            let language = self.model.language();
            let shared = match language.is_long(keys.len()) == past.state.long {
                true => language.reusable(shared.min(keys.len() - 1)),
                false => 0,
            };
            if past.state.cache.capacity() >= capacity {
                past.state.cache.truncate(shared);
                past.keys.truncate(shared);
                past.keys.extend(&keys[shared..]);
                return Ok(shared);
            }
        }
        // The old state goes first: both together may not fit.
        self.past = None;
        let shape = self.model.language().cache_shape(capacity);
        let state = DecoderState::new(shape, &self.device).map_err(ModelError::from)?;
        self.past = Some(Past {
            state,
            keys: keys.to_vec(),
        });
        Ok(0)
    }

    /// Embeddings of the prompt from token `from` on, media encoded where they are needed.
    fn embed(
        &mut self,
        prompt: &Prompt,
        media: &[MediaInput],
        hashes: &[u128],
        from: usize,
    ) -> Tensor<B, 2> {
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
            let features = self.encode(&media[span.medium], hashes[span.medium]);
            parts.push((*features).clone().narrow(0, at - span.start, end - at));
            at = end;
        }
        if at < prompt.ids.len() {
            parts.push(self.model.language().embed(&prompt.ids[at..]));
        }
        Tensor::cat(parts, 0)
    }

    /// The features of a medium; the same medium is encoded once.
    fn encode(&mut self, medium: &MediaInput, hash: u128) -> Rc<Tensor<B, 2>> {
        if let Some(features) = self.features.get(&hash) {
            return features.clone();
        }
        let features = Rc::new(self.model.encode(medium));
        self.features.insert(hash, features.clone());
        features
    }

    /// Features are kept for the media of the current conversation only.
    fn keep_features(&mut self, hashes: &[u128]) {
        self.features.retain(|hash, _| hashes.contains(hash));
    }

    /// Takes the prompt into the state (stage `prefill`); the first token, see
    /// [`Self::pick`].
    fn prefill(
        &mut self,
        embeddings: Tensor<B, 2>,
        prompt: &Prompt,
        from: usize,
        sampler: &mut Sampler,
    ) -> Result<Option<u32>, EngineError> {
        let _stage = stage::top("prefill");
        let positions = &prompt.positions[from..];
        let past = self.past.as_mut().expect("reuse has made the state");
        let language = self.model.language();
        let hidden = language.prefill(embeddings, positions, &mut past.state);
        let logits = language.logits(hidden);
        if probe::active() {
            let shown = logits.clone().flatten::<1>(0, 1);
            probe::capture("logits_first", &shown);
        }
        self.pick(logits, sampler)
    }

    /// The next token by its scores; `None` if one is not a number. Reading is where a device that
    /// works asynchronously says what went wrong before.
    fn pick(
        &self,
        scores: Tensor<B, 2>,
        sampler: &mut Sampler,
    ) -> Result<Option<u32>, EngineError> {
        let picked = if sampler.is_greedy() {
            argmax(scores)
        } else {
            let scores = scores.try_into_data();
            scores.map(|scores| sampler.pick(scores.as_slice().expect("scores are f32")))
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

/// Identifies a prepared medium by its content.
fn hash(medium: &MediaInput) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(medium.kind.as_str().as_bytes());
    for size in medium.grid.iter().chain(&medium.shape) {
        hasher.update(&size.to_le_bytes());
    }
    hasher.update(&medium.time_step.to_le_bytes());
    for chunk in medium.values.chunks(1024) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.digest128()
}

fn token_keys(prompt: &Prompt, hashes: &[u128]) -> Vec<TokenKey> {
    let mut keys: Vec<TokenKey> = prompt
        .ids
        .iter()
        .map(|&id| TokenKey { id, medium: None })
        .collect();
    for span in &prompt.spans {
        for key in &mut keys[span.start..span.start + span.len] {
            key.medium = Some(hashes[span.medium]);
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
