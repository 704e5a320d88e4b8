//! What every family can do, as the engine sees it.

use burn::tensor::Tensor;
use edge_lmm_ops::{CacheError, CacheShape, KernelBackend, KvStore};

use crate::error::ModelError;
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Message, TextProcessor};

/// Position of a token on the axes time, height and width; equal for text.
pub type Position = [u32; 3];

/// What the user may ask of the preparation of media.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaOptions {
    /// Fewest and most tokens of a picture, where the family can choose.
    pub image_tokens: Option<(usize, usize)>,
    /// What follows a sound.
    pub audio_padding: AudioPadding,
    /// Most tokens of a medium. The engine sets it to the model's context, so that a medium that
    /// cannot fit is refused before memory is taken for its values.
    pub most_tokens: usize,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            image_tokens: None,
            audio_padding: AudioPadding::default(),
            most_tokens: usize::MAX,
        }
    }
}

/// What follows a sound in its spectrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AudioPadding {
    /// No more than the encoder's convolutions see: the features are those of the padded form,
    /// for a fraction of the work.
    #[default]
    None,
    /// Silence up to the full window that the encoder was trained on (30 s), as in the reference.
    Window,
}

/// A picture, video or sound, ready for its encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaInput {
    /// What it is.
    pub kind: MediaKind,
    /// Pixel values or features, row-major.
    pub values: Vec<f32>,
    /// Dimensions of `values`.
    pub shape: Vec<usize>,
    /// Patches in time, height and width, before merging (zeros where that says nothing). For a
    /// sound, `[n, 1, 1]`: the first `n` frames are not padding.
    pub grid: [usize; 3],
    /// Positions in time from one patch to the next, for families that count them.
    pub time_step: u32,
    /// Tokens that it takes in the prompt.
    pub tokens: usize,
}

/// Kinds of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A still picture.
    Image,
    /// A sequence of frames.
    Video,
    /// A sound.
    Audio,
}

impl MediaKind {
    /// The name in messages and chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

/// Where a medium stands in the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First token.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// Index of the medium.
    pub medium: usize,
}

/// A prompt in tokens, with room for the features of its media.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids; placeholders at the media's places.
    pub ids: Vec<u32>,
    /// The media's places, in order.
    pub spans: Vec<Span>,
    /// One position per token.
    pub positions: Vec<Position>,
}

impl Prompt {
    /// Tokens that stand for media.
    pub fn visual_tokens(&self) -> usize {
        self.spans.iter().map(|span| span.len).sum()
    }

    /// The position of the first generated token.
    pub fn next_position(&self) -> u32 {
        self.positions.iter().flatten().max().map_or(0, |p| p + 1)
    }
}

/// A model of some family.
pub trait Model<B: KernelBackend>: Send {
    /// The language model.
    fn language(&self) -> &dyn LanguageModel<B>;

    /// Whether the number of an image's tokens can be chosen ([`MediaOptions::image_tokens`]).
    fn resizes_images(&self) -> bool {
        false
    }

    /// Prepares a picture for the encoder.
    ///
    /// # Errors
    /// If the family takes no pictures or cannot take this one.
    fn image(&self, _image: &RgbImage, _options: &MediaOptions) -> Result<MediaInput, ModelError> {
        Err(unsupported("pictures"))
    }

    /// Prepares a video for the encoder.
    ///
    /// # Errors
    /// If the family takes no videos or cannot take this one.
    fn video(
        &self,
        _frames: &[RgbImage],
        _frames_per_second: f32,
        _options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        Err(unsupported("videos"))
    }

    /// Prepares a sound in one channel for the encoder.
    ///
    /// # Errors
    /// If the family takes no sounds or cannot take this one.
    fn audio(
        &self,
        _samples: &[f32],
        _sample_rate: u32,
        _options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        Err(unsupported("sounds"))
    }

    /// Puts a conversation into tokens; `media` in the order in which the messages show them.
    ///
    /// # Errors
    /// If template, tokenizer and media do not fit together.
    fn prompt(
        &self,
        text: &TextProcessor,
        messages: &[Message],
        media: &[MediaInput],
    ) -> Result<Prompt, ModelError>;

    /// Encodes a medium (stages `vision` or `audio`, and `projector`): `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// If `monitor` cancels.
    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError>;
}

fn unsupported(kind: &'static str) -> ModelError {
    ModelError::Unsupported {
        family: "this model",
        kind,
    }
}

/// Tokens that [`LanguageModel::prefill`] takes at once: enough to fill the kernels' tiles, few
/// enough to keep the activations of the widest layer small.
pub const PREFILL_CHUNK: usize = 512;

/// What a language model remembers of the tokens so far.
pub struct DecoderState<B: KernelBackend> {
    /// Keys and values of past positions.
    pub cache: B::KvCache,
    /// What every layer attends to of an encoder's output, keys then values:
    /// `[encoder tokens, 2 * heads * head_dim]`. Empty where there is no encoder.
    pub cross: Vec<Tensor<B, 2>>,
    /// Whether the keys are those of a long sequence, see [`LanguageModel::is_long`].
    pub long: bool,
}

impl<B: KernelBackend> DecoderState<B> {
    /// Nothing yet, with the memory for what will come.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(shape: CacheShape, device: &B::Device) -> Result<Self, CacheError> {
        Ok(Self {
            cache: B::kv_cache(shape, device)?,
            cross: Vec::new(),
            long: false,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let elements: usize = self.cross.iter().map(|kv| kv.shape().num_elements()).sum();
        self.cache.bytes() + elements * size_of::<f32>()
    }
}

/// A language model that continues a sequence of embeddings.
///
/// What has a default is what decoder-only models do.
pub trait LanguageModel<B: KernelBackend> {
    /// Width of an embedding.
    fn hidden_size(&self) -> usize;

    /// Rows of the embedding table; ids below it are valid.
    fn vocabulary(&self) -> usize;

    /// Positions the model was made for.
    fn context_length(&self) -> usize;

    /// The cache that holds `capacity` positions.
    fn cache_shape(&self, capacity: usize) -> CacheShape;

    /// Positions that the cache needs for a prompt of `prompt` tokens and an answer of `answer`.
    fn positions(&self, prompt: usize, answer: usize) -> usize {
        prompt.saturating_add(answer).min(self.context_length())
    }

    /// How many of the `shared` tokens that a new prompt begins with like the old one
    /// [`Self::prefill`] may leave out: as many positions as the cache is then to keep.
    fn reusable(&self, shared: usize) -> usize {
        shared
    }

    /// Whether a sequence of that many tokens counts as long, where that changes how all of its
    /// positions are encoded (LongRoPE, Ding et al. 2024): what was computed for a short sequence
    /// is then of no use in a long one, and the other way round.
    fn is_long(&self, _tokens: usize) -> bool {
        false
    }

    /// The tokens that the answer continues: the prompt's, or those of the decoder where an
    /// encoder takes the prompt.
    fn decoder_tokens(&self, prompt: &[u32]) -> Vec<u32> {
        prompt.to_vec()
    }

    /// Embeddings of tokens: `[ids.len(), hidden_size]`.
    fn embed(&self, ids: &[u32]) -> Tensor<B, 2>;

    /// Takes the prompt (what is not in the state yet, at least one token); the hidden state that
    /// the first generated token is scored with: `[1, hidden]`.
    ///
    /// # Errors
    /// If `monitor` cancels; the state then holds the chunks that are complete.
    fn prefill(
        &self,
        embeddings: Tensor<B, 2>,
        positions: &[Position],
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        state.long = self.is_long(state.cache.len() + positions.len());
        let chunks = positions.len().div_ceil(PREFILL_CHUNK);
        let mut hidden = None;
        for (i, chunk) in positions.chunks(PREFILL_CHUNK).enumerate() {
            let rows = embeddings.clone().narrow(0, i * PREFILL_CHUNK, chunk.len());
            let last = monitor.pass(i, chunks, |monitor| self.step(rows, chunk, state, monitor))?;
            hidden = Some(last);
        }
        hidden.ok_or_else(|| ModelError::Prompt("it is empty".to_owned()))
    }

    /// Takes further tokens into the state; the last one's normalised hidden state `[1, hidden]`.
    ///
    /// # Errors
    /// If `monitor` cancels; the state is then as before.
    fn step(
        &self,
        embeddings: Tensor<B, 2>,
        positions: &[Position],
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError>;

    /// Scores of the next token: `[1, vocabulary]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2>;
}
