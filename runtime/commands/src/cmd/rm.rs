//! `edge-lmm rm`: removes models from the folder.

use std::path::Path;
use std::{fs, io};

use anyhow::Context;
use clap::Args;

use crate::models::{self, Model};

/// Removes models: their records, descriptions, and checkpoints that were kept or are unfinished.
#[derive(Args)]
pub struct Cmd {
    /// Names of the models
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        // A wrong name removes nothing.
        let models = self.names.iter().map(|name| find(name));
        let models: Vec<Model> = models.collect::<anyhow::Result<_>>()?;
        for model in models {
            remove(&model.checkpoint(), |path| fs::remove_dir_all(path))?;
            remove(&model.downloads(), |path| fs::remove_dir_all(path))?;
            remove(&model.description(), |path| fs::remove_file(path))?;
            remove(&model.record(), |path| fs::remove_file(path))?;
            eprintln!("removed {}", model.name);
        }
        Ok(())
    }
}

/// Finds a model, or what a pull without a conversion left of one.
fn find(name: &str) -> anyhow::Result<Model> {
    let model = Model::named(models::folder()?, name)?;
    match model.checkpoint().exists() || model.downloads().exists() {
        true => Ok(model),
        false => Model::existing(name),
    }
}

/// Removes what may be absent. Links are removed, not followed.
fn remove(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> anyhow::Result<()> {
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
