//! A model in memory that sessions share.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::prompt::{Message, Role, TextProcessor, ToolSyntax};
use edge_lmm_models::reduce::Reductions;
use edge_lmm_ops::{Format, KernelBackend, stage};
use edge_lmm_record::{Description, Record, RecordError};
use serde_json::Value;

use crate::constraint::{Compiler, Constraint, ConstraintError, Matching};
use crate::cost::CostModel;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::estimate::WeightSizes;
use crate::features::{FEATURE_CACHE_BYTES, FeatureCache, MediumKey};
use crate::generation::GenerationConfig;
use crate::memory::vision_format;
use crate::request::Request;
use crate::session::Speculation;
use crate::store::{Origin, Store};

/// Chain of methods of a medium with a time limit, by the medium without a reduction and the limit.
pub(crate) type ChosenChains = HashMap<(MediumKey, Duration), Reductions>;

/// A loaded model and what all of its sessions have in common.
pub(crate) struct LoadedModel<B: KernelBackend> {
    pub model: Box<dyn BuiltModel<B>>,
    pub text: TextProcessor,
    pub end_tokens: Vec<u32>,
    pub generation: GenerationConfig,
    pub device: B::Device,
    pub weight_sizes: WeightSizes,
    pub vision_format: Option<Format>,
    /// Identifies results of this model on this device.
    pub origin: Origin,
    /// Results of earlier processes.
    pub store: OnceLock<Store>,
    /// Times for estimates and time limits.
    pub costs: OnceLock<CostModel>,
    /// Model that drafts tokens of answers.
    pub draft: OnceLock<Engine<B>>,
    /// Chains that were chosen for media with a time limit.
    pub chosen: Mutex<ChosenChains>,
    /// Compiler of constraints, built for the first one.
    constraints: OnceLock<Result<Compiler, ConstraintError>>,
    features: Mutex<FeatureCache<B>>,
}

impl<B: KernelBackend> LoadedModel<B> {
    /// Builds the model of a record and borrows its weights (stage `load`). `check` may refuse the
    /// model before its weights are filled.
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn load(
        registry: &Registry<B>,
        record: &Record,
        device: B::Device,
        check: impl FnOnce(&dyn BuiltModel<B>, &WeightSizes) -> Result<(), EngineError>,
    ) -> Result<Self, EngineError> {
        let _stage = stage::top("load");
        let info = record.info();
        let (model, weights) = record.skeleton(registry, &device)?;
        log::debug!("{}: {} weights", record.path().display(), weights.len());
        let weight_sizes = WeightSizes::new(record, weights);
        check(&*model, &weight_sizes)?;
        // Memory of exactly the weights' sizes, where a device keeps pools of other sizes.
        let (model, loaded) =
            B::memory_persistent_allocations(&device, (model, record), |(mut model, record)| {
                let loaded = model.load(&mut record.store());
                (model, loaded.map_err(|error| error.to_string()))
            });
        loaded.map_err(|reason| RecordError::Damaged {
            path: record.path().to_owned(),
            reason,
        })?;
        let description = Description {
            info,
            tokenizer: record.tokenizer(),
            template: record.template(),
        };
        Self::new(model, description, weight_sizes, record.identity(), device)
    }

    /// Takes a model whose weights are filled. `identity` tells it from others, see
    /// [`Record::identity`].
    ///
    /// # Errors
    /// If tokenizer or template are invalid.
    pub fn new(
        model: Box<dyn BuiltModel<B>>,
        description: Description<'_>,
        weight_sizes: WeightSizes,
        identity: u128,
        device: B::Device,
    ) -> Result<Self, EngineError> {
        let Description {
            info,
            tokenizer,
            template,
        } = description;
        let text = TextProcessor::new(tokenizer, template.map(str::to_owned))?
            .with_config(&info.files.config);
        let generation = GenerationConfig::new(&info.files);
        for key in generation.unsupported() {
            log::warn!("generation_config.json: {key} is not supported and has no effect");
        }
        Ok(Self {
            generation,
            end_tokens: end_tokens(&info.files.generation, &info.files.config),
            origin: Origin::new(identity, &B::fingerprint(&device)),
            store: OnceLock::new(),
            costs: OnceLock::new(),
            draft: OnceLock::new(),
            chosen: Mutex::default(),
            model,
            text,
            device,
            weight_sizes,
            vision_format: vision_format(info),
            constraints: OnceLock::new(),
            features: Mutex::new(FeatureCache::new(FEATURE_CACHE_BYTES)),
        })
    }

    /// Returns `true` if the model's own layer drafts tokens of the answer to a request, if the model
    /// has one. A draft model takes its place.
    pub fn drafts_with_mtp(&self, request: &Request<'_>) -> bool {
        request.speculation != Speculation::Off && self.draft.get().is_none()
    }

    /// Returns the form in which the model writes calls of functions.
    ///
    /// # Errors
    /// If the chat template cannot be rendered.
    pub fn tool_syntax(&self) -> Result<ToolSyntax, EngineError> {
        if self.text.tool_syntax().is_none() {
            // The first prompt finds the form.
            let messages = [Message::text(Role::User, "?")];
            self.model.prompt(&self.text, (&messages).into(), &[])?;
        }
        Ok(self.text.tool_syntax().cloned().unwrap_or_default())
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// If it is invalid, or the tokenizer does not allow constraints.
    pub fn matching(&self, constraint: &Constraint) -> Result<Matching, ConstraintError> {
        let new = || Compiler::new(&self.text, &self.end_tokens);
        let compiler = self.constraints.get_or_init(new).as_ref();
        compiler.map_err(Clone::clone)?.compile(constraint)
    }

    /// Returns the cache of encoder outputs. It stays usable after a panic on another thread.
    pub fn features(&self) -> MutexGuard<'_, FeatureCache<B>> {
        self.features.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the end-of-sequence tokens of `generation_config.json`, or else of `config.json`, at its
/// top level or in the language model's section.
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
