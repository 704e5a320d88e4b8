//! `edge-lmm show`: a description of a model.

use clap::Args;
use edge_lmm::units::bytes;
use serde_json::json;

use crate::models::Model;
use crate::models::description::Description;

use super::inspect;
use super::options::print_now;

/// Describes a model: its source, its preset and its record, as `edge-lmm inspect` does.
#[derive(Args)]
pub struct Cmd {
    /// Name of the model
    #[arg(value_name = "NAME")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let model = Model::existing(&self.name)?;
        let description = Description::read(&model)?;
        let path = model.record();
        let record = inspect::Cmd::of(path.clone());
        if self.json {
            let report = json!({
                "name": model.name,
                "path": path.display().to_string(),
                "description": description,
                "record": record.describe()?,
            });
            return print_now(&format!("{report}\n"));
        }
        let mut text = format!("{}: {}\n", model.name, path.display());
        if let Some(description) = &description {
            text += &origin(description);
        }
        print_now(&text)?;
        record.run()
    }
}

fn origin(description: &Description) -> String {
    let Description {
        source,
        commit,
        files,
        preset,
    } = description;
    let size: u64 = files.iter().map(|file| file.bytes).sum();
    let size = bytes(usize::try_from(size).unwrap_or(usize::MAX));
    let mut text = format!(
        "from {source}, commit {commit}, {} files with {size}\n",
        files.len()
    );
    if let Some(preset) = preset {
        text += &format!("preset for {}: context {}", preset.target, preset.context);
        if let Some((min, max)) = preset.image_tokens {
            text += &format!(", --image-tokens {min}..{max}");
        }
        text.push('\n');
    }
    text
}
