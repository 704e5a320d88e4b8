//! Errors of loading and answering.

use edge_lmm_models::ModelError;
use edge_lmm_ops::MemoryFailure;

use crate::constraint::ConstraintError;
use crate::device::DeviceError;
#[cfg(feature = "files")]
use crate::media::MediaError;
use crate::memory::MemoryError;
use crate::record::RecordError;
use crate::session::SnapshotError;

/// Error of loading a model or answering a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Error of the record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Error of the model or its prompt.
    #[error(transparent)]
    Model(ModelError),
    /// Error of an image, video or sound.
    #[cfg(feature = "files")]
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Error of the requested device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model is too large for the memory.
    #[error(transparent)]
    DoesNotFit(#[from] MemoryError),
    /// The device failed during a computation.
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
    /// Error of the constraint of a request.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A time limit without a cost model.
    #[error(
        "the request limits the time to the first token, but the times of this model are not \
         known: measure them (Engine::measure_costs) and let the engine use them"
    )]
    NoCosts,
    /// The model cannot draft tokens for another one.
    #[error(
        "the draft model does not suit the model: {0}; use a smaller model of the same family, on \
         the same device"
    )]
    Draft(&'static str),
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
    /// Error of a snapshot in a file.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The model computed a NaN.
    #[error(
        "the scores of token {0} are not numbers: the weights are damaged (verify the record) \
         or overflow in this format"
    )]
    NotANumber(usize),
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Compute(reason) => Self::Compute(reason),
            error => Self::Model(error),
        }
    }
}
