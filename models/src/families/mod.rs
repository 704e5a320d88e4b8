//! The registry of families: a new one is its file (or folder) here and one line in [`families!`].

mod blip2;
mod llama;
mod llava;
mod phi3;
mod phi3_v;
mod qwen2;
mod qwen2_5_vl;
mod qwen2_audio;
mod qwen2_vl;
mod qwen_vl_input;
mod text_model;

use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::{BuiltModel, FamilyInfo, ModelFiles};
use crate::weights::Weights;

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
