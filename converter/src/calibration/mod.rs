//! Calibrated quantization: scales and quants that change the outputs of the layers little on
//! samples, instead of the weights.
//!
//! All samples pass through the model together, weight by weight. At each weight, the
//! statistics of its inputs ([`InputStatistics`]) are collected, it is quantized by them, and the
//! samples go on with the quantized weight.

mod awq;
mod example;
mod hessian;
mod model;
mod objective;
mod packed_weights;
mod pass;
mod pictures;
mod products;
mod rescale;
mod room;
mod rounding;
mod samples;
mod scales;
mod statistics;
mod statistics_file;
mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use edge_lmm_kernels::format::{FormatError, PANEL};
use edge_lmm_kernels::pack::{Quantized, pack_quants};
use edge_lmm_kernels::pool;
use edge_lmm_models::weights::Part;
use edge_lmm_ops::{Format, MatrixShape};
use edge_lmm_record::output::Output;

use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::source::Checkpoint;
use objective::Objective;
use pass::{Pass, Sample};
use room::{Room, fitting};
use scales::Scales;

pub(crate) use example::Example;
pub(crate) use model::{Model, prefill_text};
pub(crate) use packed_weights::PackedWeights;
pub use samples::Samples;
pub(crate) use samples::spread;
pub use statistics::InputStatistics;
pub use statistics_file::SavedStatistics;

/// Default of the memory for samples and statistics in bytes.
pub const MEMORY: usize = 4 << 30;

/// The error of a calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// A sample cannot be used.
    #[error("calibration: {reason}")]
    Samples {
        /// Why.
        reason: String,
    },
    /// Saved statistics cannot be used.
    #[error("statistics: {reason}")]
    Statistics {
        /// Why.
        reason: String,
    },
    /// The model cannot run.
    #[error("calibration: the model cannot run the samples: {reason}")]
    Model {
        /// Why.
        reason: String,
    },
}

/// A method of quantization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Rounds to the nearest value, with scales of the smallest error of the weights.
    #[default]
    Nearest,
    /// As [`Self::Nearest`], but the error of each input counts with its mean square.
    Weighted,
    /// As [`Self::Weighted`], with scaled inputs where the module before can take the scales.
    Awq,
    /// GPTQ on the scales of [`Self::Weighted`], with inputs by falling mean square.
    Gptq,
    /// GPTQ on weights that are moved to give the outputs of the float model, then single changes of
    /// quants and scales while they improve the layer's outputs. Weights in 8 bits are moved where 4
    /// bits or pruning have changed the inputs.
    Best,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 5] = [
        Self::Nearest,
        Self::Weighted,
        Self::Awq,
        Self::Gptq,
        Self::Best,
    ];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Weighted => "weighted",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::Best => "best",
        }
    }

    /// Returns `true` if the method uses statistics of the inputs.
    pub fn is_calibrated(self) -> bool {
        self != Self::Nearest
    }

    /// Returns the method that rounds a weight in the same way, but changes no other weight and makes up
    /// for the loss of none.
    pub fn alone(self) -> Self {
        match self {
            Self::Nearest => Self::Nearest,
            Self::Weighted | Self::Awq => Self::Weighted,
            Self::Gptq | Self::Best => Self::Gptq,
        }
    }

    /// Returns `true` if the method uses the products of a weight's inputs: to round it to 4 bits, or
    /// to make up in 8 bits for what the weights before have lost.
    fn needs_products(self, weight: &PlannedWeight, plan: &Plan) -> bool {
        match weight.format {
            Some(Format::Q4) => matches!(self, Self::Gptq | Self::Best),
            Some(Format::Q8) => {
                let part = weight.spec.part;
                let loses = |other: &PlannedWeight| {
                    other.format == Some(Format::Q4) && other.spec.part == part
                };
                let drifts =
                    plan.weights.iter().any(loses) || (part == Part::Text && plan.lacks_channels());
                self == Self::Best && drifts && !weight.spec.is_vocabulary()
            }
            _ => false,
        }
    }
}

/// A calibration of the weights of a plan.
pub struct Calibration {
    method: Method,
    source: Source,
    path: PathBuf,
    memory: usize,
    save: Option<Output>,
}

enum Source {
    Samples(Samples),
    Saved(SavedStatistics),
}

impl Calibration {
    /// Creates a calibration on samples. The temporary file `path` takes the packed weights.
    pub fn new(method: Method, samples: Samples, path: impl Into<PathBuf>) -> Self {
        Self::of(method, Source::Samples(samples), path.into())
    }

    /// Creates a calibration with statistics of an earlier one. They have no products of inputs, so
    /// that [`Method::Gptq`] and [`Method::Best`] work as [`Method::Weighted`].
    pub fn with_statistics(
        method: Method,
        saved: SavedStatistics,
        path: impl Into<PathBuf>,
    ) -> Self {
        Self::of(method, Source::Saved(saved), path.into())
    }

    fn of(method: Method, source: Source, path: PathBuf) -> Self {
        Self {
            method,
            source,
            path,
            memory: MEMORY,
            save: None,
        }
    }

    /// Writes the statistics to `output`.
    #[must_use]
    pub fn saving_to(self, output: Output) -> Self {
        Self {
            save: Some(output),
            ..self
        }
    }

    /// Limits the memory of samples and statistics. With less memory, fewer samples are used.
    #[must_use]
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// Quantizes and packs all weights that the samples use, and folds the scales of their inputs into
    /// the rest of the plan. `progress` is as in [`write_record_to`](crate::write_record_to).
    ///
    /// # Errors
    /// If the samples do not fit the model, or a weight cannot be read or packed.
    pub(crate) fn run(
        self,
        plan: &mut Plan,
        checkpoint: &Checkpoint,
        progress: &dyn Fn(&str, usize),
    ) -> Result<PackedWeights, ConvertError> {
        let (pruned, packed) = (&*plan, PackedWeights::create(&self.path)?);
        let unpruned = match self.method {
            Method::Best => pruned.with_all_channels(checkpoint)?,
            _ => None,
        };
        let mut pass = Pass {
            plan: pruned,
            unpruned: unpruned.as_ref(),
            checkpoint,
            method: self.method,
            memory: self.memory,
            progress,
            packed,
            samples: Vec::new(),
            statistics: BTreeMap::new(),
            saved: SavedStatistics::default(),
            scales: Scales::default(),
        };
        match &self.source {
            Source::Samples(samples) => {
                pass.samples = self.start(samples, pruned, unpruned.as_ref(), checkpoint)?;
                pass.run()?;
            }
            Source::Saved(saved) => pass.use_saved(saved)?,
        }
        let Pass {
            mut packed,
            saved,
            scales,
            ..
        } = pass;
        if let Some(output) = self.save {
            output.finish_with(&saved.to_bytes()?)?;
        }
        scales.fold_into(plan, &mut packed)?;
        Ok(packed)
    }

    /// Starts the samples.
    fn start(
        &self,
        samples: &Samples,
        plan: &Plan,
        unpruned: Option<&Plan>,
        checkpoint: &Checkpoint,
    ) -> Result<Vec<Sample>, ConvertError> {
        let model = Arc::new(Model::new(plan, checkpoint)?);
        let float = match (self.method == Method::Best, unpruned) {
            (false, _) => None,
            (true, None) => Some(model.clone()),
            (true, Some(unpruned)) => Some(Arc::new(Model::new(unpruned, checkpoint)?)),
        };
        let room = Room::new(plan, self.method, self.memory);
        let size = |example: Example| {
            let tokens = room.tokens_of(model.size(&example)?);
            Ok((example, tokens))
        };
        let sized: Vec<_> = (model.examples(samples).into_iter())
            .map(size)
            .collect::<Result<_, CalibrationError>>()?;
        // Texts get at least half of the room.
        let parts = 1 + usize::from(samples.texts().next().is_some());
        let (examples, tokens) = fitting(&sized, room.tokens() / parts);
        let most = room.tokens().saturating_sub(tokens);
        let windows = samples.windows(&checkpoint.tokenizer, model.context_length(), most)?;
        check_ids(&windows, model.vocabulary())?;
        log::info!(
            "calibration on {} windows of text and {} of {} questions",
            windows.len(),
            examples.len(),
            sized.len()
        );
        let mut started = Vec::new();
        for ids in windows {
            let sample = move |model: &Model| model.run_text(&ids);
            started.push(Sample::start(sample, &model, float.as_ref())?);
        }
        for example in examples {
            let sample = move |model: &Model| model.run_example(&example);
            started.push(Sample::start(sample, &model, float.as_ref())?);
        }
        Ok(started)
    }
}

fn check_ids(windows: &[Vec<u32>], vocabulary: usize) -> Result<(), CalibrationError> {
    let mut ids = windows.iter().flatten();
    match ids.find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(CalibrationError::Model {
            reason: format!("token {id} of the text has no embedding"),
        }),
        None => Ok(()),
    }
}

/// How a weight is quantized.
pub(crate) struct Rule {
    method: Method,
    /// The mean square of each input.
    pub mean_squares: Vec<f32>,
    /// The objectives of the ranges of columns, if products of the inputs are known.
    objectives: Vec<Objective>,
    /// The weight in the float model, if that has more inputs.
    unpruned: Option<PlannedWeight>,
}

impl Rule {
    fn new(
        method: Method,
        statistics: InputStatistics,
        damping: f32,
        unpruned: Option<PlannedWeight>,
    ) -> Self {
        let (mean_squares, tokens) = (statistics.mean_squares(), statistics.tokens);
        let products = statistics.into_mean_products().into_iter();
        Self {
            method,
            mean_squares,
            objectives: products
                .map(|products| Objective::new(products, tokens, damping))
                .collect(),
            unpruned,
        }
    }

    /// Returns `true` if the products of the inputs are known. The quants are then chosen by all
    /// threads together.
    pub fn has_products(&self) -> bool {
        !self.objectives.is_empty()
    }

    /// Returns the weight whose rows [`Self::pack`] needs beside the own ones.
    pub fn unpruned(&self) -> Option<&PlannedWeight> {
        self.unpruned.as_ref()
    }

    /// Quantizes whole panels of rows and appends them to `out`. `unpruned` are the same rows of
    /// [`Self::unpruned`].
    ///
    /// # Errors
    /// If a value cannot be packed.
    pub fn pack(
        &self,
        shape: MatrixShape,
        rows: &[f32],
        unpruned: Option<&[f32]>,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let moved = self.moved(shape, rows, unpruned.unwrap_or(rows));
        let mut quantized = quantize(shape, &moved, &self.mean_squares)?;
        // The error of rounding to 8 bits is small beside that of the inputs.
        if shape.format == Format::Q4 {
            for objective in &self.objectives {
                let hessian = &objective.hessian;
                objective.round(shape, &moved, &mut quantized, |weights, quantized| {
                    rounding::gptq(weights, hessian, quantized);
                    if self.method == Method::Best {
                        rounding::improve(weights, hessian, quantized);
                    }
                });
            }
        }
        let Quantized {
            quants,
            sub_scales,
            scales,
        } = &quantized;
        pack_quants(shape, quants, sub_scales, scales, out)
    }

    /// Returns the weights whose outputs on the quantized model's inputs are nearest to those of
    /// `float` on the float model's inputs (GPTAQ: Li et al. 2025,
    /// [arXiv:2504.02692](https://arxiv.org/abs/2504.02692)). Inputs that were pruned are thereby
    /// replaced by the others as well as they can be.
    fn moved(&self, shape: MatrixShape, rows: &[f32], float: &[f32]) -> Vec<f32> {
        let float_width = float.len() / shape.rows.max(1);
        let mut moved = rows.to_vec();
        for objective in &self.objectives {
            objective.move_to(float, float_width, &mut moved, shape.cols);
        }
        moved
    }
}

/// Quantizes rows on all threads.
fn quantize(
    shape: MatrixShape,
    rows: &[f32],
    mean_squares: &[f32],
) -> Result<Quantized, FormatError> {
    let chunks: Vec<&[f32]> = rows.chunks(PANEL * shape.cols.max(1)).collect();
    let slots: Vec<Mutex<Option<Result<Quantized, FormatError>>>> =
        chunks.iter().map(|_| Mutex::default()).collect();
    pool::global().run(chunks.len(), |task| {
        let quantized = Quantized::new(shape, chunks[task], Some(mean_squares));
        *slots[task].lock().expect("no task panics with the lock") = Some(quantized);
    });
    let mut all = Quantized::default();
    for slot in slots {
        let part = slot.into_inner().expect("no task panics with the lock");
        let part = part.expect("every task fills its slot")?;
        all.quants.extend(part.quants);
        all.sub_scales.extend(part.sub_scales);
        all.scales.extend(part.scales);
    }
    Ok(all)
}
