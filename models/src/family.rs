//! Description of a family, and the files of a checkpoint that describe a model.

use burn_store::{BurnpackError, BurnpackStore, ModuleSnapshot};
use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::model::Model;

/// Configuration files of a model, as found in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ModelFiles {
    /// `config.json`
    pub config: Value,
    /// The configuration of the image processor or the feature extractor:
    /// `preprocessor_config.json`, or a section of `processor_config.json`
    #[serde(default)]
    pub preprocessor: Option<Value>,
    /// The configuration of the video processor, if it has one of its own:
    /// `video_preprocessor_config.json`, or a section of `processor_config.json`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_preprocessor: Option<Value>,
    /// `generation_config.json`
    #[serde(default)]
    pub generation: Option<Value>,
}

/// Properties of a family that are known without building a model.
#[derive(Debug, Clone, Copy)]
pub struct FamilyInfo {
    /// `model_type` of the checkpoint's `config.json`.
    pub model_type: &'static str,
    /// Display name.
    pub title: &'static str,
    /// Sections of `config.json` that describe a part of the model, and the `model_type`s that the
    /// part may have. A section without a `model_type` has the first one.
    pub parts: &'static [(&'static str, &'static [&'static str])],
}

impl FamilyInfo {
    /// Rejects a model whose tower or language model is of a kind that the family does not support,
    /// such as LLaVA with a SigLIP tower.
    pub(crate) fn check_parts(&self, config: &Value) -> Result<(), ModelError> {
        for (section, expected) in self.parts {
            let found = config.get(section).and_then(|part| part.get("model_type"));
            match found {
                None | Some(Value::Null) => {}
                Some(Value::String(found)) if expected.contains(&&**found) => {}
                Some(found) => {
                    return Err(ModelError::config(format!(
                        "{section}.model_type is {found}, expected {}: {} with other parts is not \
                         supported",
                        expected.join(" or "),
                        self.title
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A model whose weights can be filled from a record.
pub trait BuiltModel<B: KernelBackend>: Model<B> {
    /// Fills the weights; those of a mapped store are borrowed, not copied.
    ///
    /// # Errors
    /// If the store lacks a weight or holds one of another shape.
    fn load(&mut self, store: &mut BurnpackStore) -> Result<(), BurnpackError>;
}

impl<B: KernelBackend, M: Model<B> + ModuleSnapshot<B>> BuiltModel<B> for M {
    fn load(&mut self, store: &mut BurnpackStore) -> Result<(), BurnpackError> {
        self.load_from(store).map(|_| ())
    }
}
