//! `edge-lmm list`: the models of the folder.

use std::fs;

use clap::Args;
use comfy_table::{Table, presets};
use edge_lmm::units::bytes;
use serde::Serialize;

use crate::models::description::Description;
use crate::models::{self, Model};

use super::options::print_now;

/// Lists the models that can be used by name.
///
/// A name stands for a record in the folder of models: every command that takes the path of a record
/// also takes a name.
#[derive(Args)]
pub struct Cmd {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    path: String,
    bytes: u64,
    /// Argument of `edge-lmm pull`.
    source: Option<String>,
    /// Device of the preset.
    target: Option<String>,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let folder = models::folder()?;
        let models = Model::all(folder)?;
        let listed: Vec<Listed> = models.iter().map(list).collect::<anyhow::Result<_>>()?;
        if self.json {
            return print_now(&format!("{}\n", serde_json::to_string(&listed)?));
        }
        if listed.is_empty() {
            eprintln!("there are no models in {}", folder.display());
            return Ok(());
        }
        print_now(&format!("{}\n", table(&listed)))
    }
}

fn list(model: &Model) -> anyhow::Result<Listed> {
    let path = model.record();
    let description = Description::read(model).unwrap_or_else(|error| {
        log::warn!("{error:#}");
        None
    });
    let preset = description.as_ref().and_then(|d| d.preset.as_ref());
    Ok(Listed {
        name: model.name.clone(),
        bytes: fs::metadata(&path)?.len(),
        path: path.display().to_string(),
        target: preset.map(|preset| preset.target.clone()),
        source: description.map(|description| description.source),
    })
}

fn table(listed: &[Listed]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["name", "size", "source", "preset"]);
    for model in listed {
        table.add_row([
            &*model.name,
            &bytes(usize::try_from(model.bytes).unwrap_or(usize::MAX)),
            model.source.as_deref().unwrap_or("-"),
            model.target.as_deref().unwrap_or("-"),
        ]);
    }
    table
}
