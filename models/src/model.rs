//! The interface that every family implements.
//!
//! A medium is prepared ([`Model::image`], [`Model::video`], [`Model::audio`]) and encoded
//! ([`Model::encode`]) before the prompt is put together ([`Model::prompt`]), so that the number of
//! its tokens may depend on its content. The language model then continues the prompt.

use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;

use crate::error::ModelError;
use crate::language::LanguageModel;
use crate::layout::Layout;
use crate::media::{FrameTimes, MediaInput, MediaOptions, VideoFrames, VideoPieces};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::reduce::{EncoderSize, ReductionStep};

/// An encoded medium.
#[derive(Debug, Clone)]
pub struct Encoded<B: KernelBackend> {
    /// Place in the prompt.
    pub layout: Layout,
    /// One row for each token of the layout's runs: `[tokens, hidden_size]`.
    pub features: Tensor<B, 2>,
    /// Features that are added to the tokens' hidden states before deeper layers of the language
    /// model: the index of the layer and `[tokens, hidden_size]`.
    pub deep: Vec<(usize, Tensor<B, 2>)>,
    /// Attention that each token receives in the encoder's last layer, if a method of
    /// [`reduce`](crate::reduce) needs it and the encoder can tell.
    pub attention: Option<Vec<f32>>,
    /// Tokens left after each method of reduction.
    pub steps: Vec<ReductionStep>,
}

impl<B: KernelBackend> Encoded<B> {
    /// Creates an encoded medium with the layout of the preprocessed one.
    pub fn new(medium: &MediaInput, features: Tensor<B, 2>) -> Self {
        Self {
            layout: medium.layout.clone(),
            features,
            deep: Vec::new(),
            attention: None,
            steps: medium.reduction.steps.clone(),
        }
    }

    /// Creates an encoded medium of the units that an encoder left, one token for each.
    pub fn of_units(medium: &MediaInput, features: Tensor<B, 2>, left: UnitsLeft) -> Self {
        let tokens = medium.reduction.places(&left.ids);
        Self::of_tokens(medium, features, &tokens, left)
    }

    /// Creates an encoded medium of the units that an encoder left, whose tokens are those at
    /// `tokens` of the preprocessed medium's layout.
    pub fn of_tokens(
        medium: &MediaInput,
        features: Tensor<B, 2>,
        tokens: &[usize],
        left: UnitsLeft,
    ) -> Self {
        let mut encoded = Self {
            attention: left.attention,
            ..Self::new(medium, features)
        };
        if tokens.len() < medium.tokens() {
            encoded.layout = medium.layout.keep(tokens);
        }
        encoded.steps.extend(left.steps);
        encoded
    }

    /// Joins the pieces of a video ([`VideoPieces`]), of which there is at least one.
    ///
    /// # Panics
    /// If there is none.
    pub fn join(pieces: Vec<Self>) -> Self {
        let layouts: Vec<&Layout> = pieces.iter().map(|piece| &piece.layout).collect();
        let layout = Layout::join(&layouts);
        let mut pieces = pieces.into_iter();
        let mut joined = pieces.next().expect("there is a piece");
        let mut features = vec![joined.features];
        let mut deep: Vec<_> = joined
            .deep
            .into_iter()
            .map(|(layer, x)| (layer, vec![x]))
            .collect();
        for piece in pieces {
            features.push(piece.features);
            for ((_, parts), (_, x)) in deep.iter_mut().zip(piece.deep) {
                parts.push(x);
            }
            if let (Some(all), Some(attention)) = (&mut joined.attention, piece.attention) {
                all.extend(attention);
            }
            for (sum, step) in joined.steps.iter_mut().zip(piece.steps) {
                sum.tokens += step.tokens;
            }
        }
        Self {
            layout,
            features: Tensor::cat(features, 0),
            deep: deep
                .into_iter()
                .map(|(layer, parts)| (layer, Tensor::cat(parts, 0)))
                .collect(),
            attention: joined.attention,
            steps: joined.steps,
        }
    }

    /// Returns the bytes of all features.
    pub fn bytes(&self) -> usize {
        let tensors = std::iter::once(&self.features).chain(self.deep.iter().map(|(_, x)| x));
        let elements: usize = tensors.map(|x| x.shape().num_elements()).sum();
        elements * size_of::<f32>()
    }
}

/// The units of a medium that an encoder left, see [`reduce`](crate::reduce).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UnitsLeft {
    /// Their numbers, sorted.
    pub ids: Vec<usize>,
    /// Attention that each receives in the encoder's last layer, if asked for.
    pub attention: Option<Vec<f32>>,
    /// Number of units after each method within the encoder.
    pub steps: Vec<ReductionStep>,
}

/// A model of some family.
pub trait Model<B: KernelBackend>: Send + Sync {
    /// Returns the language model.
    fn language(&self) -> &dyn LanguageModel<B>;

    /// Returns `true` if the number of an image's tokens can be chosen
    /// ([`MediaOptions::image_tokens`]).
    fn resizes_images(&self) -> bool {
        false
    }

    /// Returns `true` if crops of an image can be added ([`MediaOptions::pan_and_scan`]).
    fn pans_images(&self) -> bool {
        false
    }

    /// Prepares an image for the encoder.
    ///
    /// # Errors
    /// If the family takes no images or cannot take this one.
    fn image(&self, _image: &RgbImage, _options: &MediaOptions) -> Result<MediaInput, ModelError> {
        Err(unsupported("images"))
    }

    /// Prepares a video for the encoder.
    ///
    /// # Errors
    /// If the family takes no videos or cannot take this one.
    fn video(
        &self,
        _frames: &[RgbImage],
        _times: &FrameTimes,
        _options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        Err(unsupported("videos"))
    }

    /// Prepares a video as [`video`](Self::video) does, but in pieces that are encoded one by one
    /// and joined ([`Encoded::join`]). Returns the video without values and its pieces; `None` if
    /// it has to be encoded as a whole.
    ///
    /// # Errors
    /// As [`video`](Self::video).
    fn video_pieces<'a>(
        &'a self,
        _frames: &'a dyn VideoFrames,
        _times: &FrameTimes,
        _options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        Ok(None)
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

    /// Returns the size of the encoder's work on a medium, for estimates of time and counts of
    /// tokens. By default, that of one layer with one row for each token, which
    /// cannot merge.
    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        EncoderSize {
            parts: vec![medium.tokens()],
            rows: 1,
            layers: 1,
            merges: false,
            units_are_tokens: true,
        }
    }

    /// Encodes a medium (stages `vision` or `audio`, and `projector`).
    ///
    /// # Errors
    /// If `monitor` cancels.
    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError>;

    /// Tokenizes a conversation; `media` are the layouts of its media, in the order in which the
    /// messages show them.
    ///
    /// # Errors
    /// If template, tokenizer and media do not fit together.
    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError>;
}

fn unsupported(kind: &'static str) -> ModelError {
    ModelError::Unsupported {
        family: "this model",
        kind,
    }
}
