//! Plans the contents of a record before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use edge_lmm::Cpu;
use edge_lmm::estimate::{ResourceEstimate, Scenario, StoredWeight};
use edge_lmm::output::OutputError;
use edge_lmm_models::families::{self, Registry};
use edge_lmm_models::family::{FamilyInfo, ModelFiles};
use edge_lmm_models::weights::{Part, Selection, Storage, WeightSpec, Weights};
use edge_lmm_models::{ModelError, prompt::TextProcessor};
use edge_lmm_ops::{Format, MatrixShape};
use edge_lmm_record::{FORMAT_VERSION, PackedFormat, RecordInfo, SourceFile};

use crate::calibration::CalibrationError;
use crate::factors::Factors;
use crate::planned_weight::PlannedWeight;
use crate::source::{Checkpoint, SourceError};
use crate::{leftovers, names, prune};

/// The error returned when a checkpoint cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The checkpoint does not describe a valid model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor has a different shape than the configuration requires.
    #[error(
        "tensor {tensor} has shape {found:?}, expected {rows} rows of {cols}: \
         config.json and the weights belong to different models"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape in the checkpoint.
        found: Vec<usize>,
        /// Expected number of rows.
        rows: usize,
        /// Expected elements per row.
        cols: usize,
    },
    /// A required tensor is missing.
    #[error(
        "the checkpoint has no tensor {tensor}, which the {family} weight {weight} is made of; \
         is a shard or the --mmproj file missing?"
    )]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The weight.
        weight: String,
        /// The model's family.
        family: &'static str,
    },
    /// The samples of a calibration cannot be used.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A scale cannot be folded.
    #[error("cannot scale the outputs of {module}: {reason}")]
    Fold {
        /// The module.
        module: String,
        /// Why.
        reason: String,
    },
    /// A weight cannot be packed.
    #[error("weight {weight}: {reason}")]
    Pack {
        /// The weight.
        weight: String,
        /// The reason.
        reason: String,
    },
    /// The tokenizer has ids without an embedding.
    #[error(
        "the tokenizer has tokens up to id {largest}, the model has only {vocabulary} embeddings \
         (vocab_size): tokenizer and model do not belong together"
    )]
    Tokenizer {
        /// The largest id.
        largest: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// Layers or channels cannot be pruned.
    #[error("cannot prune: {reason}")]
    Prune {
        /// Why.
        reason: String,
    },
    /// A record cannot be as small as wanted.
    #[error("the size of the record: {reason}")]
    Budget {
        /// Why.
        reason: String,
    },
    /// The vocabulary cannot be pruned.
    #[error("cannot prune the vocabulary: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// The record's file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The record cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// Formats chosen by the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Format of the language model.
    pub text: Format,
    /// Format of the vision encoder and the projector.
    pub vision: Format,
    /// Format of the audio encoder.
    pub audio: Format,
    /// Format of the embeddings and the output head, if not that of the language model.
    pub head: Option<Format>,
    /// Formats of single weights, by their names in the record. The last rows of a stacked weight are
    /// a weight of their own if they are named here, such as `text.layers.0.qkv.tail.weight`.
    pub weights: BTreeMap<String, Format>,
}

impl Default for Options {
    /// Returns 4 bits for the language model and 8 bits for the encoders.
    fn default() -> Self {
        Self {
            text: Format::Q4,
            vision: Format::Q8,
            audio: Format::Q8,
            head: None,
            weights: BTreeMap::new(),
        }
    }
}

impl Options {
    /// Returns 8 bits for all parts: nearly the float model, for measurements.
    pub fn eight_bits() -> Self {
        Self {
            text: Format::Q8,
            ..Self::default()
        }
    }

    /// Returns the format of a packed weight.
    pub fn format(&self, spec: &WeightSpec) -> Format {
        if let Some(&format) = self.weights.get(&spec.name) {
            return format;
        }
        match spec.part {
            Part::Text if spec.is_vocabulary() => self.head.unwrap_or(self.text),
            Part::Text if spec.is_recurrent_gate() && self.text == Format::Q4 => Format::Q8,
            Part::Text => self.text,
            Part::Vision | Part::Projector => self.vision,
            Part::Audio => self.audio,
        }
    }
}

/// The part of a checkpoint that is left after pruning.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pruning {
    /// `config.json` with the sizes after pruning, which becomes the record's.
    pub config: serde_json::Value,
    /// The rows, columns and layers to keep.
    pub selection: Selection,
}

impl Pruning {
    /// Keeps the whole checkpoint.
    pub fn none(checkpoint: &Checkpoint) -> Self {
        Self {
            config: checkpoint.config.clone(),
            selection: Selection::default(),
        }
    }
}

/// The planned contents of a record.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The family.
    pub family: &'static FamilyInfo,
    /// Metadata of the record.
    pub info: RecordInfo,
    /// Weights in the order in which the model uses them.
    pub weights: Vec<PlannedWeight>,
    /// Tensors of the checkpoint that the model does not use.
    pub unused: Vec<String>,
    /// The dimensions that [`Pruning::selection`] can name, with their sizes after pruning.
    pub dimensions: BTreeMap<String, usize>,
    /// The rows, columns and layers that are kept.
    pub selection: Selection,
}

impl Plan {
    /// Plans the record of a checkpoint.
    ///
    /// # Errors
    /// If the family is unknown, a tensor is missing or has the wrong shape, or the tokenizer
    /// does not match.
    pub fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Self, ConvertError> {
        Self::pruned(checkpoint, options, Pruning::none(checkpoint))
    }

    /// As [`Self::new`], for a part of the checkpoint.
    ///
    /// # Errors
    /// As [`Self::new`], or if selection, configuration and checkpoint do not fit together.
    pub fn pruned(
        checkpoint: &Checkpoint,
        options: &Options,
        pruning: Pruning,
    ) -> Result<Self, ConvertError> {
        let files = ModelFiles {
            config: pruning.config,
            preprocessor: checkpoint.preprocessor_config.clone(),
            video_preprocessor: checkpoint.video_preprocessor_config.clone(),
            generation: checkpoint.generation_config.clone(),
        };
        let family = families::info(&files)?;
        let declared = Weights::<Cpu>::new(Default::default(), |spec| Ok(options.format(spec)))
            .with_tails(|name| options.weights.contains_key(name))
            .with_optional(|_, tensor| {
                checkpoint
                    .tensor(&names::stored(tensor, checkpoint))
                    .is_some()
            })
            .with_selection(pruning.selection.clone());
        let vocabulary = families::build(&files, &declared)?.language().vocabulary();
        declared.check_selection()?;
        let dimensions = declared.dimensions();
        check_tokenizer(checkpoint, vocabulary)?;
        let weights = declared
            .into_specs()
            .into_iter()
            .map(|spec| plan_weight(spec, checkpoint, options, family))
            .collect::<Result<Vec<_>, _>>()?;
        leftovers::check(checkpoint, &weights)?;
        leftovers::warn_of_low_bit_sources(checkpoint, &weights);
        let formats = weights
            .iter()
            .filter_map(|w| Some((w.spec.name.clone(), PackedFormat(w.format?))))
            .collect();
        let used: BTreeSet<&str> = weights
            .iter()
            .flat_map(|w| &w.spec.sources)
            .map(|source| source.tensor.as_str())
            .collect();
        Ok(Self {
            family,
            dimensions,
            selection: pruning.selection,
            unused: checkpoint
                .tensors()
                .map(|(name, _)| name)
                .filter(|name| !used.contains(name))
                .map(str::to_owned)
                .collect(),
            info: RecordInfo {
                format_version: FORMAT_VERSION,
                files,
                formats,
                sources: checkpoint
                    .files
                    .iter()
                    .map(|file| SourceFile {
                        name: file.name.clone(),
                        bytes: file.bytes,
                        xxh3: file.hash().to_owned(),
                    })
                    .collect(),
                converter: env!("CARGO_PKG_VERSION").to_owned(),
            },
            weights,
        })
    }

    /// Plans a record of the same part of the checkpoint in other formats.
    ///
    /// # Errors
    /// As [`Self::pruned`].
    pub fn in_formats(
        &self,
        checkpoint: &Checkpoint,
        options: &Options,
    ) -> Result<Self, ConvertError> {
        let pruning = Pruning {
            config: self.info.files.config.clone(),
            selection: self.selection.clone(),
        };
        Self::pruned(checkpoint, options, pruning)
    }

    /// Returns `true` if feed-forward channels or heads are left out.
    pub(crate) fn lacks_channels(&self) -> bool {
        self.selection.without(is_channel) != self.selection
    }

    /// Plans the record with all feed-forward channels and heads; `None` if they are all there. It has the same
    /// weights, of which some have more rows or columns.
    ///
    /// # Errors
    /// As [`Self::pruned`].
    pub(crate) fn with_all_channels(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Self>, ConvertError> {
        if !self.lacks_channels() {
            return Ok(None);
        }
        let selection = self.selection.without(is_channel);
        let mut config = self.info.files.config.clone();
        prune::restore_channels(&mut config, &checkpoint.config);
        let pruning = Pruning { config, selection };
        let tails = self
            .info
            .formats
            .iter()
            .filter(|(name, _)| name.ends_with(".tail.weight"));
        let options = Options {
            weights: tails
                .map(|(name, format)| (name.clone(), format.0))
                .collect(),
            ..Options::default()
        };
        Self::pruned(checkpoint, &options, pruning).map(Some)
    }

    /// Estimates the memory that the record needs to run.
    ///
    /// # Errors
    /// If the model does not accept an image of that size.
    pub fn estimate(
        &self,
        tokenizer: usize,
        scenario: &Scenario,
    ) -> Result<ResourceEstimate, ConvertError> {
        let (model, _) = self
            .info
            .skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        let weights: Vec<StoredWeight> = self
            .weights
            .iter()
            .map(|weight| StoredWeight {
                spec: weight.spec.clone(),
                bytes: weight.bytes,
            })
            .collect();
        Ok(ResourceEstimate::new(
            &*model, &weights, tokenizer, scenario,
        )?)
    }

    /// Returns the parts of the checkpoint, by the first word of their tensors' names, of which the
    /// model uses no tensor, with the numbers of these: such as the speech of a model whose text is
    /// converted.
    pub fn skipped_parts(&self) -> BTreeMap<&str, usize> {
        let part = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let sources = self.weights.iter().flat_map(|weight| &weight.spec.sources);
        let used: BTreeSet<String> = sources.map(|source| part(&source.tensor)).collect();
        let mut skipped = BTreeMap::new();
        for name in &self.unused {
            let first = name.split('.').next().unwrap_or_default();
            if !used.contains(first) {
                *skipped.entry(first).or_default() += 1;
            }
        }
        skipped
    }

    /// Returns the total size of all weights in bytes.
    pub fn bytes(&self) -> usize {
        self.weights.iter().map(|weight| weight.bytes).sum()
    }
}

/// Returns `true` for a dimension that counts feed-forward channels or heads.
fn is_channel(dimension: &str) -> bool {
    [".ffn", ".heads", ".kv_heads"]
        .iter()
        .any(|end| dimension.ends_with(end))
}

fn check_tokenizer(checkpoint: &Checkpoint, vocabulary: usize) -> Result<(), ConvertError> {
    // Checks the chat template too, so that errors of the runtime are found before anything is
    // written.
    let text = TextProcessor::new(&checkpoint.tokenizer, checkpoint.chat_template.clone())?;
    match text.largest_id() {
        Some(largest) if largest as usize >= vocabulary => Err(ConvertError::Tokenizer {
            largest,
            vocabulary,
        }),
        _ => Ok(()),
    }
}

fn plan_weight(
    mut spec: WeightSpec,
    checkpoint: &Checkpoint,
    options: &Options,
    family: &FamilyInfo,
) -> Result<PlannedWeight, ConvertError> {
    let cols = spec.cols();
    let source_cols = spec.columns.source_len();
    for source in &mut spec.sources {
        source.tensor = names::stored(&source.tensor, checkpoint);
        let info =
            checkpoint
                .tensor(&source.tensor)
                .ok_or_else(|| ConvertError::MissingTensor {
                    tensor: source.tensor.clone(),
                    weight: spec.name.clone(),
                    family: family.title,
                })?;
        let (rows, cols) = match spec.transposed {
            true => (source_cols, source.rows.source_len()),
            false => (source.rows.source_len(), source_cols),
        };
        if info.rows() != rows || info.row_len() != cols {
            return Err(ConvertError::Shape {
                tensor: source.tensor.clone(),
                found: info.shape.clone(),
                rows,
                cols,
            });
        }
        checkpoint.check_readable(&source.tensor)?;
    }
    let (format, bytes) = match spec.storage {
        Storage::Packed { cols } => {
            let shape = MatrixShape {
                format: options.format(&spec),
                rows: spec.rows(),
                cols,
            };
            (Some(shape.format), shape.byte_len())
        }
        Storage::Dense { .. } => (None, (spec.rows() * cols).checked_mul(size_of::<f32>())),
    };
    let bytes = bytes.ok_or_else(|| ConvertError::Pack {
        weight: spec.name.clone(),
        reason: format!("{} x {cols} values exceed the address space", spec.rows()),
    })?;
    let planned = PlannedWeight {
        spec,
        format,
        bytes,
        factors: Factors::default(),
    };
    log::debug!("{}", planned.describe(checkpoint));
    Ok(planned)
}
