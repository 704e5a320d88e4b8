//! A loaded model.

use std::sync::Arc;

use edge_lmm_models::prompt::TextProcessor;
use edge_lmm_ops::KernelBackend;
use edge_lmm_record::Record;

use crate::error::EngineError;
use crate::loaded::LoadedModel;
use crate::session::Session;

/// A loaded model, from which sessions are opened. Clones share the weights.
pub struct Engine<B: KernelBackend>(Arc<LoadedModel<B>>);

impl<B: KernelBackend> Clone for Engine<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: KernelBackend> Engine<B> {
    /// Builds the model of a record and borrows its weights (stage `load`).
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn load(record: &Record, device: B::Device) -> Result<Self, EngineError> {
        LoadedModel::load(record, device).map(|model| Self(Arc::new(model)))
    }

    /// Opens a session: a conversation with a state of its own. Sessions share the weights and the
    /// encoder outputs of media.
    pub fn session(&self) -> Session<B> {
        Session::new(self.0.clone())
    }

    /// Largest number of positions of a conversation.
    pub fn context_length(&self) -> usize {
        self.0.model.language().context_length()
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.0.model.language().vocabulary()
    }

    /// The tokenizer and the chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.0.text
    }

    /// The device of the model.
    pub fn device(&self) -> &B::Device {
        &self.0.device
    }
}
