//! The registry of families: a new one is its file and one line here.

use burn_store::{BurnpackError, BurnpackStore, ModuleSnapshot};
use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::model::Model;
use crate::weights::Weights;
use crate::{blip2, llama, llava, phi3, phi3_v, qwen2, qwen2_5_vl, qwen2_audio, qwen2_vl};

/// A model's configuration files, as they lie in the checkpoint.
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

/// What is known of a family without building a model.
#[derive(Debug, Clone, Copy)]
pub struct FamilyInfo {
    /// `model_type` of the checkpoint's `config.json`.
    pub model_type: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Sections of `config.json` that describe a part of the model, and the `model_type`s that the
    /// part may have. A section without a `model_type` has the first one.
    pub parts: &'static [(&'static str, &'static [&'static str])],
}

impl FamilyInfo {
    /// Refuses a model whose tower or language model is of a kind that the family does not have,
    /// such as LLaVA with a SigLIP tower.
    fn check_parts(&self, config: &Value) -> Result<(), ModelError> {
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

macro_rules! families {
    ($($module:ident :: $model:ident),* $(,)?) => {
        /// All families.
        pub const FAMILIES: &[FamilyInfo] = &[$($module::INFO),*];

        /// Builds the model that `files` describe, its weights declared but not loaded.
        ///
        /// # Errors
        /// If the family is unknown, its configuration makes no model, or `weights` cannot say
        /// how a weight is stored.
        pub fn build<B: KernelBackend>(
            files: &ModelFiles,
            weights: &Weights<'_, B>,
        ) -> Result<Box<dyn BuiltModel<B>>, ModelError> {
            info(files)?;
            match model_type(files)? {
                $(t if t == $module::INFO.model_type => {
                    Ok(Box::new($module::$model::<B>::init(files, weights)?))
                })*
                other => Err(unknown(other)),
            }
        }
    };
}

families![
    qwen2_vl::Qwen2Vl,
    qwen2_5_vl::Qwen25Vl,
    qwen2_audio::Qwen2Audio,
    blip2::Blip2,
    llava::Llava,
    phi3_v::Phi3Vision,
    llama::Llama,
    qwen2::Qwen2,
    phi3::Phi3,
];

/// A model whose weights can be filled from a record.
pub trait BuiltModel<B: KernelBackend>: Model<B> {
    /// Fills the weights; those of a mapped store are borrowed, not copied.
    ///
    /// # Errors
    /// What the store finds missing or unfit.
    fn load(&mut self, store: &mut BurnpackStore) -> Result<(), BurnpackError>;
}

impl<B: KernelBackend, M: Model<B> + ModuleSnapshot<B>> BuiltModel<B> for M {
    fn load(&mut self, store: &mut BurnpackStore) -> Result<(), BurnpackError> {
        self.load_from(store).map(|_| ())
    }
}

fn model_type(files: &ModelFiles) -> Result<&str, ModelError> {
    files
        .config
        .get("model_type")
        .and_then(Value::as_str)
        .ok_or_else(|| {
            ModelError::config("config.json has no \"model_type\"; it names the model's family")
        })
}

fn unknown(found: &str) -> ModelError {
    let supported: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    ModelError::UnknownFamily {
        found: found.to_owned(),
        supported: supported.join(", "),
    }
}

/// The family that `files` describe.
///
/// # Errors
/// If it is unknown, or has parts of another kind than the family.
pub fn info(files: &ModelFiles) -> Result<&'static FamilyInfo, ModelError> {
    let found = model_type(files)?;
    let family = FAMILIES
        .iter()
        .find(|family| family.model_type == found)
        .ok_or_else(|| unknown(found))?;
    family.check_parts(&files.config)?;
    Ok(family)
}
