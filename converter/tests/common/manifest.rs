//! The test checkpoints, found by their manifests in `checkpoints` of the test data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use edge_lmm_convert::source::Checkpoint;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Golden, data, goldens};

/// The description of a checkpoint; paths are relative to the folder of test data.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(skip)]
    pub name: String,
    /// The cases that it covers.
    pub about: String,
    /// A folder in the layout of the hub, or a language model as GGUF.
    pub weights: String,
    /// The encoder that belongs to the latter.
    pub mmproj: Option<String>,
    /// The checkpoint with the properties that a GGUF file cannot express.
    pub original: Option<Original>,
    /// The folder of reference values.
    pub goldens: String,
    /// Number of reference samples, so that a missing one is noticed.
    pub samples: usize,
    /// Names of the compared stages.
    pub stages: Vec<String>,
    /// Tolerances that differ from the common ones, and additional ones.
    #[serde(default)]
    pub tolerances: BTreeMap<String, Tolerance>,
    /// Samples that are checked on GPUs.
    #[serde(default)]
    pub gpu_samples: Vec<usize>,
    /// The reference's answers to the question set.
    pub questions: Option<String>,
    /// Versions of `transformers` that have saved it for the tests of layouts.
    #[serde(default)]
    pub layouts: usize,
    /// Spellings of control tokens that its prompts must treat as text; missing for GGUF files, whose
    /// prompts are those of the original.
    pub spellings: Option<Vec<String>>,
}

/// A checkpoint that another one takes its image processor and its tokenizer from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    pub checkpoint: String,
    pub why: String,
}

/// A tolerance with its derivation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    pub value: f64,
    pub why: String,
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Manifest {
    /// Returns all checkpoints, sorted by name.
    pub fn all() -> Vec<Self> {
        let folder = std::fs::read_dir(data().join("checkpoints")).expect("manifests");
        let mut names: Vec<String> = folder
            .map(|entry| entry.expect("an entry").path())
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        assert!(!names.is_empty(), "no manifests");
        names.iter().map(|name| Self::named(name)).collect()
    }

    /// Returns the checkpoints in the layout of the hub.
    pub fn of_the_hub() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|manifest| data().join(&manifest.weights).is_dir());
        all
    }

    /// Returns one checkpoint.
    pub fn named(name: &str) -> Self {
        let path = data().join("checkpoints").join(format!("{name}.json"));
        Self {
            name: name.to_owned(),
            ..read(&path)
        }
    }

    /// Opens the checkpoint.
    pub fn open(&self) -> Checkpoint {
        let mmproj = self.mmproj.as_ref().map(|file| data().join(file));
        let open = |path: &str, mmproj| Checkpoint::open(&data().join(path), mmproj);
        let mut checkpoint = open(&self.weights, mmproj.as_deref()).expect("a checkpoint");
        if let Some(original) = &self.original {
            let original = open(&original.checkpoint, None).expect("the original");
            checkpoint.preprocessor_config = original.preprocessor_config.clone();
            checkpoint.tokenizer = original.tokenizer.clone();
        }
        checkpoint
    }

    /// Reads the reference samples.
    pub fn goldens(&self) -> Vec<Golden> {
        let goldens = goldens(&data().join(&self.goldens));
        assert_eq!(goldens.len(), self.samples, "{}", self.name);
        goldens
    }

    /// Returns the first sample with the most kinds of media, which uses all encoders.
    pub fn golden_of_all_encoders(&self) -> Golden {
        let mut all = self.goldens();
        let kinds = |golden: &Golden| -> usize {
            let media = golden.media.iter().map(|medium| medium.kind().as_str());
            media.collect::<BTreeSet<_>>().len()
        };
        let most = all.iter().map(kinds).max();
        let first = all.iter().position(|golden| Some(kinds(golden)) == most);
        all.swap_remove(first.expect("a sample"))
    }

    /// Returns a tolerance: the checkpoint's own or the common one.
    pub fn tolerance(&self, name: &str) -> Option<f64> {
        let common: BTreeMap<String, Tolerance> = read(&data().join("tolerances.json"));
        let found = self.tolerances.get(name).or(common.get(name));
        found.map(|tolerance| tolerance.value)
    }
}
