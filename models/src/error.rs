//! Errors of models, prompts and media.

use edge_lmm_ops::CacheError;

use crate::preprocess::PreprocessError;

/// Error of building a model or of a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration does not describe a model that can be run.
    #[error("configuration: {0}")]
    Config(String),
    /// No family of that name.
    #[error("no model family {found:?}; supported: {supported}")]
    UnknownFamily {
        /// Name in the checkpoint or record.
        found: String,
        /// Supported names.
        supported: String,
    },
    /// The record lacks a weight that the model needs.
    #[error("the record has no weight {0:?}: it is incomplete or was written by another version")]
    MissingWeight(String),
    /// The tokenizer cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The tokenizer cannot keep control tokens in a message as text.
    #[error(
        "tokenizer: it cannot be rewritten to keep control tokens in a message as text, which is \
         not needed if they are to take effect: {0}"
    )]
    ControlTokens(String),
    /// A setting of `generation_config.json` that cannot be applied.
    #[error(
        "configuration: generation_config.json: {key} is {found}, expected {expected}; correct it \
         or ignore the file"
    )]
    GenerationConfig {
        /// The setting.
        key: String,
        /// Value found.
        found: String,
        /// Values that can be applied.
        expected: String,
    },
    /// The chat template cannot be rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// An image, video or sound cannot be taken.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// A video whose frames are decoded meanwhile is damaged or was dropped.
    #[error("the frames of a video could not be decoded")]
    Undecoded,
    /// The model has no input of that kind.
    #[error("{family} takes no {kind}")]
    Unsupported {
        /// The model's family.
        family: &'static str,
        /// Kind of input.
        kind: &'static str,
    },
    /// The number of an image's tokens cannot be chosen.
    #[error(
        "this model does not resize images to a number of tokens: do not ask for one, or use a \
         model that takes images of any size"
    )]
    FixedImageTokens,
    /// The model adds no crops to images.
    #[error("this model adds no crops to images, so there is no pan and scan")]
    NoPanAndScan,
    /// A method of reduction needs attention that the encoder does not report.
    #[error(
        "the encoder of this model does not report the attention that its tokens receive: use \
         another method than attention, such as diverse"
    )]
    NoAttention,
    /// Anchors are positions of rotary embeddings, which the model does not have.
    #[error(
        "the language model has no rotary position embeddings, so that its tokens cannot be \
         anchors: leave anchors out"
    )]
    NoRotary,
    /// The family does not support a method of reduction before or within its encoder.
    #[error(
        "the encoder of this model does not support the method {method}: use one after the \
         projector, such as diverse"
    )]
    CannotReduce {
        /// Name of the method.
        method: &'static str,
    },
    /// The prompt cannot be put together.
    #[error("prompt: {0}")]
    Prompt(String),
    /// The rendered prompt and its media do not fit together.
    #[error(
        "found {found} placeholder tokens for images, videos and sounds, expected {expected}; text \
         whose control tokens take effect must not contain placeholder tokens"
    )]
    Placeholders {
        /// Number of placeholder tokens.
        found: usize,
        /// Number that the media need.
        expected: usize,
    },
    /// Tokens cannot be taken out of the state of a recurrent layer.
    #[error("the model has recurrent layers, whose state cannot go back to fewer tokens")]
    CannotTruncate,
    /// The state lacks tokens that were dropped for a prompt.
    #[error(
        "the state cannot go back to {len} tokens, expected at least {end} or 0: tokens of media \
         were dropped from it for the prompt that ends there; compute the conversation anew"
    )]
    CannotTruncateReduced {
        /// Tokens that are to be left.
        len: usize,
        /// End of the prompt.
        end: usize,
    },
    /// The reduction of the tokens of media inside the language model cannot be applied.
    #[error("reduction in the language model: {0}")]
    LanguageReduction(String),
    /// The device failed.
    #[error("device: {0}")]
    Compute(String),
    /// The computation was canceled before its end.
    #[error("canceled")]
    Canceled,
    /// No memory for the key-value cache.
    #[error("key-value cache: {0}")]
    Cache(#[from] CacheError),
}

impl ModelError {
    /// Creates a configuration error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::Config(message.into())
    }
}
