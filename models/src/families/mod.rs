//! The registry of families: a new one is its file (or folder) here and one line in `families!`.

mod blip2;
mod gemma3;
mod gemma3_text;
mod idefics3;
mod lfm2_vl;
mod llama;
mod llava;
mod phi3;
mod phi3_v;
mod qwen2;
mod qwen2_5_omni;
mod qwen2_5_vl;
mod qwen2_audio;
mod qwen2_vl;
mod qwen3;
mod qwen3_5;
mod qwen3_vl;
mod qwen_vl_config;
pub(crate) mod qwen_vl_input;
mod smolvlm;
mod sound;
mod text_model;

use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::{BuiltModel, FamilyInfo, ModelFiles};
use crate::weights::Weights;

/// Builds a family's model, its weights declared but not loaded.
pub type Init<B> = fn(&ModelFiles, &Weights<'_, B>) -> Result<Box<dyn BuiltModel<B>>, ModelError>;

/// A family with the function that builds its model.
pub struct Family<B: KernelBackend> {
    /// Properties that are known without building a model.
    pub info: FamilyInfo,
    /// Builds a model.
    pub init: Init<B>,
}

/// Families by the `model_type` of their configuration.
///
/// [`Registry::default`] has the families of this crate; a program can add its own.
pub struct Registry<B: KernelBackend>(Vec<Family<B>>);

macro_rules! families {
    ($($module:ident :: $model:ident),* $(,)?) => {
        /// The families of this crate.
        pub const FAMILIES: &[FamilyInfo] = &[$($module::INFO),*];

        impl<B: KernelBackend> Default for Registry<B> {
            fn default() -> Self {
                Self(vec![$(Family {
                    info: $module::INFO,
                    init: |files, weights| {
                        Ok(Box::new($module::$model::<B>::init(files, weights)?))
                    },
                }),*])
            }
        }
    };
}

families![
    qwen2_vl::Qwen2Vl,
    qwen2_5_vl::Qwen25Vl,
    qwen3_vl::Qwen3Vl,
    qwen3_5::Qwen35,
    qwen2_audio::Qwen2Audio,
    qwen2_5_omni::Qwen25Omni,
    blip2::Blip2,
    llava::Llava,
    phi3_v::Phi3Vision,
    smolvlm::SmolVlm,
    idefics3::Idefics3,
    gemma3::Gemma3,
    lfm2_vl::Lfm2Vl,
    llama::Llama,
    qwen2::Qwen2,
    qwen3::Qwen3,
    phi3::Phi3,
    gemma3_text::Gemma3Text,
];

impl<B: KernelBackend> Registry<B> {
    /// Adds a family, which takes precedence over one of the same `model_type`.
    #[must_use]
    pub fn with(mut self, family: Family<B>) -> Self {
        self.0.insert(0, family);
        self
    }

    /// Builds the model that `files` describe, its weights declared but not loaded.
    ///
    /// # Errors
    /// If the family is unknown, its configuration makes no model, or `weights` cannot say
    /// how a weight is stored.
    pub fn build(
        &self,
        files: &ModelFiles,
        weights: &Weights<'_, B>,
    ) -> Result<Box<dyn BuiltModel<B>>, ModelError> {
        let family = find(&self.0, |family| &family.info, files)?;
        (family.init)(files, weights)
    }
}

/// Builds the model that `files` describe with the families of this crate.
///
/// # Errors
/// As [`Registry::build`].
pub fn build<B: KernelBackend>(
    files: &ModelFiles,
    weights: &Weights<'_, B>,
) -> Result<Box<dyn BuiltModel<B>>, ModelError> {
    Registry::default().build(files, weights)
}

/// Returns the family of this crate that `files` describe.
///
/// # Errors
/// If it is unknown, or has parts of another kind than the family.
pub fn info(files: &ModelFiles) -> Result<&'static FamilyInfo, ModelError> {
    find(FAMILIES, |info| info, files)
}

/// Finds the family of a model and checks the kinds of its parts.
fn find<'a, F>(
    families: &'a [F],
    info: impl Fn(&F) -> &FamilyInfo,
    files: &ModelFiles,
) -> Result<&'a F, ModelError> {
    let found = model_type(files)?;
    let family = families
        .iter()
        .find(|family| info(family).model_type == found);
    let family = family.ok_or_else(|| {
        let supported: Vec<&str> = families
            .iter()
            .map(|family| info(family).model_type)
            .collect();
        ModelError::UnknownFamily {
            found: found.to_owned(),
            supported: supported.join(", "),
        }
    })?;
    info(family).check_parts(&files.config)?;
    Ok(family)
}

/// Returns the `model_type`. `transformers` 4.57 writes that of LFM2-VL with a hyphen.
fn model_type(files: &ModelFiles) -> Result<&str, ModelError> {
    match files.config.get("model_type").and_then(Value::as_str) {
        Some("lfm2-vl") => Ok("lfm2_vl"),
        Some(found) => Ok(found),
        None => Err(ModelError::config(
            "config.json has no \"model_type\"; it names the model's family",
        )),
    }
}
