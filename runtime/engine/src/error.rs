//! Why a request fails.

use edge_lmm_models::ModelError;
use edge_lmm_ops::MemoryFailure;

use crate::device::DeviceError;
#[cfg(feature = "files")]
use crate::media::MediaError;
use crate::memory::MemoryError;
use crate::record::RecordError;

/// Why a model cannot be loaded or cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The model or its prompt.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An image, video or sound.
    #[cfg(feature = "files")]
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The device that was asked for.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model is too large for the memory.
    #[error(transparent)]
    DoesNotFit(#[from] MemoryError),
    /// The device, while it computed.
    #[error("the device failed: {0}")]
    Compute(String),
    /// The device has no more memory.
    #[error(
        "no memory is left on the device: {0}; use a shorter context (a shorter prompt or \
         answer), smaller or fewer images, or a more strongly quantized record, or end other \
         programs"
    )]
    Memory(MemoryFailure),
    /// The prompt is longer than the model can take.
    #[error(
        "the prompt has {tokens} tokens ({visual} of them for images, video or audio), the \
         model's context is {context}; shorten the question, or use fewer or smaller images, fewer \
         frames or shorter audio"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the media.
        visual: usize,
        /// Positions of the model.
        context: usize,
    },
    /// The text is longer than any prompt that the model can take; it was not tokenized.
    #[error(
        "the text is {bytes} bytes long, more than the {context} tokens that the model holds can \
         stand for; shorten it"
    )]
    TextTooLong {
        /// Bytes of the messages.
        bytes: usize,
        /// Positions of the model.
        context: usize,
    },
    /// The tokenizer gives ids that the model has no embedding for.
    #[error(
        "the tokenizer gives token {id}, the model has only {vocabulary} tokens: the record's \
         tokenizer belongs to another model"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// A step without a conversation or without tokens.
    #[error("there is nothing to continue: take a prompt in first, then at least one token")]
    NothingToContinue,
    /// The state has no room for further tokens.
    #[error("the conversation would be {tokens} tokens long, the model holds {context}")]
    ContextFull {
        /// Tokens with the further ones.
        tokens: usize,
        /// Positions of the model.
        context: usize,
    },
    /// The model computed something that is no number.
    #[error(
        "the scores of token {0} are not numbers: the weights are damaged (verify the record) \
         or overflow in this format"
    )]
    NotANumber(usize),
}
