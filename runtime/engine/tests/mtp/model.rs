//! Small models with recurrent layers whose next token mostly follows from the last one, so that drafts
//! are partly right.
//!
//! The rows of the output head are the embeddings in the order of a cycle of tokens: where the layers
//! leave the embedding as it is, the next token is the next one of the cycle. The layers add noise that
//! depends on the whole text. The layer that predicts further tokens passes the embedding of the next
//! token on, with noise of its own.

use std::path::{Path, PathBuf};

use edge_lmm::{Cpu, Engine, Record};
use edge_lmm_kernels::Format;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::ModelFiles;
use edge_lmm_models::weights::{Storage, WeightSpec, Weights};
use serde_json::{Value, json};

use crate::record;

/// First token of the cycle.
const FIRST: usize = 20;
/// Standard deviation of what a layer adds, relative to the embedding.
const NOISE: f32 = 1.6;

/// A model to be built from the configuration of a checkpoint of the test data.
#[derive(Clone, Copy)]
pub struct Model {
    /// Folder of the checkpoint.
    pub name: &'static str,
    /// Tokens of the cycle. A short one is soon found by look-up.
    pub cycle: usize,
    /// Format of the layers.
    pub format: Format,
    /// Leaves the layer that predicts further tokens out of the record, as older programs did.
    pub without_mtp: bool,
}

impl Model {
    /// Qwen3.5 with a cycle that is longer than the answers.
    pub const QWEN: Self = Self {
        name: "qwen35-odd",
        cycle: 500,
        format: Format::Q4,
        without_mtp: false,
    };

    /// Builds the model and loads it.
    pub fn engine(self) -> Engine<Cpu> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.bpk");
        self.write(&path);
        let record = Record::open(&path).expect("the record opens");
        Engine::load(&record, Default::default()).expect("the model loads")
    }

    /// Writes the record.
    pub fn write(self, path: &Path) {
        let files = self.files();
        let weights = Weights::<Cpu>::new(Default::default(), |spec| Ok(self.format_of(spec)))
            .with_optional(|_, _| !self.without_mtp);
        Registry::<Cpu>::default()
            .build(&files, &weights)
            .expect("a model");
        let specs = weights.into_specs();
        let values = |spec: &WeightSpec| match &*spec.name {
            "text.head.weight" => self.head(spec, &specs),
            _ => values(spec),
        };
        let (tokenizer, template) = (
            self.read("tokenizer.json"),
            self.read("chat_template.jinja"),
        );
        let texts = (&*tokenizer, Some(&*template));
        record::write(
            path,
            files,
            texts,
            &specs,
            |spec| self.format_of(spec),
            values,
        );
    }

    fn files(self) -> ModelFiles {
        let json = |name: &str| -> Option<Value> {
            let path = self.folder().join(name);
            let text = std::fs::read_to_string(path).ok()?;
            Some(serde_json::from_str(&text).expect("JSON"))
        };
        let mut config = json("config.json").expect("a configuration");
        config["tie_word_embeddings"] = json!(false);
        for key in ["tie_word_embeddings", "tie_embedding"] {
            config["text_config"][key] = json!(false);
        }
        config["text_config"]["max_position_embeddings"] = json!(1024);
        ModelFiles {
            config,
            preprocessor: json("preprocessor_config.json"),
            video_preprocessor: json("video_preprocessor_config.json"),
            generation: json("generation_config.json"),
        }
    }

    fn folder(self) -> PathBuf {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tests/data");
        data.join(self.name)
    }

    fn read(self, name: &str) -> String {
        std::fs::read_to_string(self.folder().join(name)).expect("a file")
    }

    fn format_of(self, spec: &WeightSpec) -> Format {
        match spec.is_vocabulary() {
            true => Format::F32,
            false => self.format,
        }
    }

    /// Returns the rows of the head: those of the tokens before in the cycle, and zeros for tokens
    /// outside of it.
    fn head(self, spec: &WeightSpec, specs: &[WeightSpec]) -> Vec<f32> {
        let mut named = specs.iter();
        let table = named.find(|spec| spec.name == "text.embedding.weight");
        let (rows, width) = (values(table.expect("a table")), spec.cols());
        let mut head = vec![0.0; spec.rows() * width];
        for place in 0..self.cycle {
            let before = FIRST + (place + self.cycle - 1) % self.cycle;
            let row = &rows[before * width..][..width];
            head[(FIRST + place) * width..][..width].copy_from_slice(row);
        }
        head
    }
}

/// Returns the values of a weight, the same ones for the same name.
fn values(spec: &WeightSpec) -> Vec<f32> {
    let name = &*spec.name;
    let mut state = name
        .bytes()
        .fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b));
    // Uniform with a variance of 1.
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 * 3f32.sqrt() - 3f32.sqrt()
    };
    let (rows, cols) = (spec.rows(), spec.cols());
    match spec.storage {
        _ if name == "text.mtp.fc.weight" => {
            // The first half of the inputs is the embedding of the next token.
            let place = |i: usize| f32::from(i / cols == i % cols);
            (0..rows * cols).map(place).collect()
        }
        Storage::Packed { .. } => {
            let adds = name.ends_with("out.weight") || name.ends_with("down.weight");
            let factor = match (name == "text.embedding.weight", adds) {
                (true, _) => 1.0,
                (_, true) => NOISE * (cols as f32).powf(-0.5),
                _ => (cols as f32).powf(-0.5),
            };
            (0..rows * cols).map(|_| factor * next()).collect()
        }
        // The state decays to a half within a few tokens.
        Storage::Dense { .. } if name.ends_with("decay_log") => vec![-2.0; rows],
        Storage::Dense { cols: Some(_) } => (0..rows * cols).map(|_| 0.5 * next()).collect(),
        Storage::Dense { cols: None } => vec![1.0; rows],
    }
}
