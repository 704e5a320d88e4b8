//! `adapter_config.json`.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::Value;

use super::super::error::{Result, SourceError, malformed};
use super::super::file::SourceFile;
use super::super::json::read_json;
use super::CONFIG;

/// Default of PEFT for `lora_alpha`.
const DEFAULT_ALPHA: f64 = 8.0;
/// Fields of variants that change the meaning of the tensors; without effect if empty.
const VARIANTS: [&str; 8] = [
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];
/// Initializations that subtract their product from the base weights, as they begin.
const CHANGED_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// The fields that determine the merged weights.
#[derive(Debug)]
pub(super) struct Config {
    alpha: f64,
    /// Values for the modules whose names match.
    alphas: Vec<(Regex, f64)>,
    /// `true` if updates are divided by the square root of the rank.
    root: bool,
    /// `true` if rows have magnitudes of their own (DoRA).
    pub(super) magnitudes: bool,
}

impl Config {
    /// Reads the file in the folder of an adapter.
    ///
    /// # Errors
    /// If it is missing or invalid, or describes another kind of adapter.
    pub(super) fn read(folder: &Path, files: &mut Vec<SourceFile>) -> Result<Self> {
        let path = folder.join(CONFIG);
        let file = path.display().to_string();
        let json = read_json(&path, files)?.ok_or_else(|| SourceError::MissingFile {
            path,
            needed_for: "it describes the adapter; --adapter takes the folder that PEFT saved"
                .into(),
        })?;
        check_kind(&json, &file)?;
        let flag = |key: &str| json.get(key).and_then(Value::as_bool) == Some(true);
        let alpha = match json.get("lora_alpha") {
            None | Some(Value::Null) => DEFAULT_ALPHA,
            Some(alpha) => number(alpha, "lora_alpha", &file)?,
        };
        let patterns = json.get("alpha_pattern").and_then(Value::as_object);
        let alphas = patterns
            .into_iter()
            .flatten()
            .map(|(pattern, alpha)| {
                let alpha = number(alpha, "alpha_pattern", &file)?;
                Ok((self::pattern(pattern, &file)?, alpha))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            alpha,
            alphas,
            root: flag("use_rslora"),
            magnitudes: flag("use_dora"),
        })
    }

    /// Returns the factor of the update of `module`, which has the rank `rank`. The name is that of
    /// the adapter. The rank of the tensors is the one that `r` and `rank_pattern` state.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        let matches = |(regex, _): &&(Regex, f64)| regex.is_match(module).unwrap_or(false);
        let alpha = self.alphas.iter().find(matches);
        let alpha = alpha.map_or(self.alpha, |&(_, alpha)| alpha);
        let divisor = match self.root {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        (alpha / divisor) as f32
    }
}

/// Rejects adapters other than LoRA and variants that are not read.
fn check_kind(json: &Value, file: &str) -> Result<()> {
    let unsupported = |what: &str, found: String, supported: &str| SourceError::Unsupported {
        file: file.to_owned(),
        what: what.to_owned(),
        found,
        supported: format!("{supported}; merge other adapters with merge_and_unload() of peft"),
    };
    match json.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => {
            let found = other.unwrap_or("(not named)").to_owned();
            return Err(unsupported("peft_type", found, "LORA"));
        }
    }
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    for key in VARIANTS {
        if let Some(value) = json.get(key).filter(|value| !is_empty(value)) {
            return Err(unsupported(key, value.to_string(), "no such variant"));
        }
    }
    let initial = json.get("init_lora_weights").and_then(Value::as_str);
    match initial.filter(|name| CHANGED_BASE.iter().any(|start| name.starts_with(start))) {
        None => Ok(()),
        Some(name) => Err(unsupported(
            "init_lora_weights",
            name.to_owned(),
            "adapters for unchanged base weights (PEFT saves them with \
             path_initial_model_for_weight_conversion)",
        )),
    }
}

fn number(value: &Value, key: &str, file: &str) -> Result<f64> {
    let number = value.as_f64().filter(|&number| (number as f32).is_finite());
    number.ok_or_else(|| malformed(file, format!("{key} {value}"), "a number"))
}

/// Compiles a pattern, which matches the end of a name from the start of a component on.
fn pattern(pattern: &str, file: &str) -> Result<Regex> {
    let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
    regex.map_err(|error| {
        malformed(
            file,
            format!("the pattern {pattern:?} ({error})"),
            "a regular expression",
        )
    })
}
