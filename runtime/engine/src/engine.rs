//! A loaded model.

use std::sync::Arc;

use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::media::MediaInput;
use edge_lmm_models::prompt::{TextProcessor, ToolSyntax};
use edge_lmm_ops::{Format, KernelBackend};
use edge_lmm_record::{Description, Record};

use crate::cost::{CostKey, CostModel};
use crate::error::EngineError;
use crate::estimate::{ResourceEstimate, Scenario, StoredWeight, WeightSizes};
use crate::loaded::LoadedModel;
use crate::memory::{Fit, MemoryCheck, Subject};
use crate::request::Request;
use crate::session::Session;
use crate::store::Store;

/// Positions that an answer is taken to need before its prompt is known.
const CONTEXT: usize = 2048;

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
        Self::load_with(&Registry::default(), record, device)
    }

    /// Loads a model as [`load`](Self::load) does, with families that the program defines.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        registry: &Registry<B>,
        record: &Record,
        device: B::Device,
    ) -> Result<Self, EngineError> {
        let model = LoadedModel::load(registry, record, device, |_, _| Ok(()))?;
        Ok(Self(Arc::new(model)))
    }

    /// Takes a model that was not read from a record, such as one whose weights are supplied while it
    /// runs ([`observe::supply`](edge_lmm_ops::observe::supply)). `identity` tells it from other
    /// models in a [`Store`].
    ///
    /// # Errors
    /// If tokenizer or template are invalid.
    pub fn with_model(
        model: Box<dyn BuiltModel<B>>,
        description: Description<'_>,
        weights: Vec<StoredWeight>,
        identity: u128,
        device: B::Device,
    ) -> Result<Self, EngineError> {
        let sizes = WeightSizes::of_weights(weights, description.tokenizer.len());
        let model = LoadedModel::new(model, description, sizes, identity, device)?;
        Ok(Self(Arc::new(model)))
    }

    /// Loads a model as [`load`](Self::load) does, but checks first that it fits into memory.
    ///
    /// # Errors
    /// [`EngineError::DoesNotFit`], and the errors of [`load`](Self::load).
    pub fn load_checked(
        record: &Record,
        device: B::Device,
        check: &MemoryCheck,
    ) -> Result<(Self, Fit), EngineError> {
        let mut fit = Fit::Whole;
        let model = LoadedModel::load(
            &Registry::default(),
            record,
            device,
            |model, weight_sizes| {
                let scenario = Scenario {
                    context: CONTEXT,
                    image_size: None,
                    // Without the memory for drafts, answers have none.
                    drafts: false,
                };
                let estimate = weight_sizes.estimate(model, &scenario)?;
                let subject = Subject::Model(record.path().display().to_string());
                fit = check.check(&estimate, subject)?;
                Ok(())
            },
        )?;
        Ok((Self(Arc::new(model)), fit))
    }

    /// Estimates a request whose preprocessed media are `media` and whose prompt has `prompt_tokens`.
    pub fn estimate(
        &self,
        request: &Request<'_>,
        media: &[MediaInput],
        prompt_tokens: usize,
    ) -> ResourceEstimate {
        let Self(shared) = self;
        shared.weight_sizes.estimate_request(
            &*shared.model,
            media,
            prompt_tokens,
            request.max_tokens,
            shared.drafts_with_mtp(request),
        )
    }

    /// Returns the format of the vision encoder's weights.
    pub(crate) fn vision_format(&self) -> Option<Format> {
        self.0.vision_format
    }

    /// Uses the results in `store` and adds new ones: encoder outputs, and the state of
    /// conversations up to the end of their last medium. Answers on a CPU are bitwise those without
    /// it. Only the first store of an engine is used.
    pub fn use_store(&self, store: Store) {
        if self.0.store.set(store).is_err() {
            log::warn!("the engine has a store already, the second one is not used");
        }
    }

    /// Measures the times of this model on its device at a few small sizes, within seconds.
    ///
    /// # Errors
    /// If the device fails.
    pub fn measure_costs(&self) -> Result<CostModel, EngineError> {
        // Another thread: a recording of stages on this one is not to see the measurements.
        std::thread::scope(|scope| {
            let measured = scope.spawn(|| self.0.measure_costs()).join();
            measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Uses a cost model for estimates and for requests with a
    /// [`first_token_budget`](edge_lmm_models::media::MediaOptions::first_token_budget). Only the
    /// first one is used, so that choices do not change.
    pub fn use_costs(&self, costs: CostModel) {
        if self.0.costs.set(costs).is_err() {
            log::warn!("the engine has a cost model already, the second one is not used");
        }
    }

    /// Uses a smaller model with the same tokenizer to draft tokens for requests with
    /// [`speculation`](crate::Request::speculation). Only the first one is used.
    ///
    /// # Errors
    /// [`EngineError::Draft`] if the model cannot draft for this one.
    pub fn use_draft(&self, draft: Self) -> Result<(), EngineError> {
        let Self(shared) = self;
        let language = draft.0.model.language();
        let is_decoder = language.decoder_layers().is_some();
        if !shared.text.has_same_tokens(&draft.0.text) {
            return Err(EngineError::Draft("its tokenizer is another one"));
        }
        if !is_decoder || language.is_long(language.context_length()) != language.is_long(1) {
            return Err(EngineError::Draft(
                "only decoder-only models without recurrent layers and LongRoPE can draft",
            ));
        }
        if shared.draft.set(draft).is_err() {
            log::warn!("the engine has a draft model already, the second one is not used");
        }
        Ok(())
    }

    /// Returns what the times of this engine depend on.
    pub fn cost_key(&self) -> CostKey {
        CostKey::of_origin(&self.0.origin)
    }

    /// Opens a session, which holds the state of one conversation. Sessions share the weights and the
    /// encoder outputs of media.
    pub fn session(&self) -> Session<B> {
        Session::new(self.0.clone())
    }

    /// Returns the largest number of positions of a conversation.
    pub fn context_length(&self) -> usize {
        self.0.model.language().context_length()
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.0.model.language().vocabulary()
    }

    /// Returns `true` if the number of an image's tokens can be chosen
    /// ([`MediaOptions::image_tokens`](crate::MediaOptions::image_tokens)).
    pub fn resizes_images(&self) -> bool {
        self.0.model.resizes_images()
    }

    /// Returns the tokenizer and the chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.0.text
    }

    /// Returns the form in which the model writes calls of functions, as its chat template does.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn tool_syntax(&self) -> Result<ToolSyntax, EngineError> {
        self.0.tool_syntax()
    }

    /// Returns the device of the model.
    pub fn device(&self) -> &B::Device {
        &self.0.device
    }
}
