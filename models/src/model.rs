//! What every family can do, as the engine sees it.

use burn::tensor::Tensor;
use edge_lmm_ops::{CacheShape, KernelBackend};

use crate::error::ModelError;
use crate::preprocess::RgbImage;
use crate::prompt::{Message, TextProcessor};

/// Position of a token on the axes time, height and width; equal for text.
pub type Position = [u32; 3];

/// What the user may ask of the preparation of media.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaOptions {
    /// Fewest and most tokens of a picture, where the family can choose.
    pub image_tokens: Option<(usize, usize)>,
    /// What follows a sound.
    pub audio_padding: AudioPadding,
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
    /// The position of the first generated token.
    pub fn next_position(&self) -> u32 {
        self.positions.iter().flatten().max().map_or(0, |p| p + 1)
    }
}

/// A model of some family.
pub trait Model<B: KernelBackend>: Send {
    /// The language model.
    fn language(&self) -> &dyn LanguageModel<B>;

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
    fn encode(&self, medium: &MediaInput) -> Tensor<B, 2>;
}

fn unsupported(kind: &'static str) -> ModelError {
    ModelError::Unsupported {
        family: "this model",
        kind,
    }
}

/// A language model that continues a sequence of embeddings.
pub trait LanguageModel<B: KernelBackend> {
    /// Width of an embedding.
    fn hidden_size(&self) -> usize;

    /// Rows of the embedding table; ids below it are valid.
    fn vocabulary(&self) -> usize;

    /// Positions the model was made for.
    fn context_length(&self) -> usize;

    /// The cache that holds `capacity` positions.
    fn cache_shape(&self, capacity: usize) -> CacheShape;

    /// Embeddings of tokens: `[ids.len(), hidden_size]`.
    fn embed(&self, ids: &[u32]) -> Tensor<B, 2>;

    /// Takes further tokens into the cache; the last one's normalised hidden state `[1, hidden]`.
    fn forward(
        &self,
        embeddings: Tensor<B, 2>,
        positions: &[Position],
        cache: &mut B::KvCache,
    ) -> Tensor<B, 2>;

    /// Scores of the next token: `[1, vocabulary]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2>;
}
