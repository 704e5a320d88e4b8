//! The origin of a model and its preset, `NAME.json` next to the record.

use std::fs;
use std::io;

use anyhow::Context;
use edge_lmm::output::Output;
use serde::{Deserialize, Serialize};

use super::Model;

/// Origin and preset of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Argument of `edge-lmm pull`.
    pub source: String,
    /// Commit of the repository.
    pub commit: String,
    /// Files of the checkpoint.
    pub files: Vec<SourceFile>,
    /// Settings for a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
}

/// A file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name in the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, if the hub announces it.
    pub sha256: Option<String>,
}

/// Settings chosen for a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preset {
    /// Name of the device.
    pub target: String,
    /// Context length that fits into its memory.
    pub context: usize,
    /// Minimum and maximum tokens of an image, for models that accept images of any size. They are
    /// the default of `--image-tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tokens: Option<(usize, usize)>,
}

impl Description {
    /// Reads the description of a model; `None` for a record that was not pulled.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid.
    pub fn read(model: &Model) -> anyhow::Result<Option<Self>> {
        let path = model.description();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let description = serde_json::from_str(&text);
        description
            .map(Some)
            .with_context(|| format!("{} is not a description of a model", path.display()))
    }

    /// Writes the description of a model.
    ///
    /// # Errors
    /// If the file cannot be written.
    #[cfg_attr(not(feature = "pull"), expect(dead_code))]
    pub fn write(&self, model: &Model) -> anyhow::Result<()> {
        let output = Output::create(&model.description(), true)?;
        Ok(output.finish_with(&serde_json::to_vec_pretty(self)?)?)
    }
}
