//! Calibrated quantization: scales and quants that change the outputs of the layers little on
//! samples, instead of the weights.
//!
//! The samples run through the model with weights in half precision, and an observer of the products
//! sums up the inputs of every layer ([`InputStatistics`]). As the sums of `x xᵀ` of all layers
//! together may be larger than memory, they are collected for as many layers at a time as a limit
//! allows, and dropped when these are packed.

mod float_model;
mod hessian;
mod products;
mod rounding;
mod samples;
mod statistics;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use edge_lmm_kernels::format::{FormatError, PANEL};
use edge_lmm_kernels::pack::{Quantized, pack_quants};
use edge_lmm_kernels::pool;
use edge_lmm_ops::{Format, MatrixShape, observe};

use crate::plan::{ConvertError, Plan};
use crate::source::Checkpoint;
use float_model::FloatModel;
use hessian::Hessian;

pub use samples::Samples;
pub use statistics::InputStatistics;

/// Default of the memory for sums of `x xᵀ` in bytes.
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
    /// GPTQ on the scales of [`Self::Weighted`], with inputs by falling mean square.
    Gptq,
    /// GPTQ, then single changes of quants and scales while they improve the layer's outputs.
    Best,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 4] = [Self::Nearest, Self::Weighted, Self::Gptq, Self::Best];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Weighted => "weighted",
            Self::Gptq => "gptq",
            Self::Best => "best",
        }
    }

    /// Returns `true` if the method uses statistics of the inputs.
    pub fn is_calibrated(self) -> bool {
        self != Self::Nearest
    }

    fn needs_products(self, format: Format) -> bool {
        format == Format::Q4 && matches!(self, Self::Gptq | Self::Best)
    }
}

/// Collects statistics for the weights of a plan while they are packed in order.
pub struct Calibration {
    method: Method,
    memory: usize,
    model: FloatModel,
    /// Weights that are quantized with statistics: name, width, whether products are needed.
    weights: Vec<(String, usize, bool)>,
    ready: BTreeMap<String, InputStatistics>,
}

impl Calibration {
    /// Prepares a calibration of the quantized weights of `plan`. The temporary file `path` takes
    /// two bytes for each weight of the model.
    ///
    /// # Errors
    /// If the file cannot be written, or the samples do not fit the model.
    pub fn new(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        method: Method,
        samples: Samples,
        path: &Path,
    ) -> Result<Self, ConvertError> {
        let weights = plan.weights.iter().filter_map(|weight| {
            let format = weight
                .format
                .filter(|f| f.is_quantized() && weight.spec.product)?;
            let products = method.needs_products(format);
            Some((weight.spec.name.clone(), weight.spec.cols(), products))
        });
        Ok(Self {
            method,
            memory: MEMORY,
            model: FloatModel::new(plan, checkpoint, samples, path)?,
            weights: weights.collect(),
            ready: BTreeMap::new(),
        })
    }

    /// Limits the memory of the sums of `x xᵀ`. More memory needs fewer passes over the samples.
    #[must_use]
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// Returns the rule to quantize a weight; `None` if no sample reaches it.
    ///
    /// # Errors
    /// If the samples cannot be run.
    pub(crate) fn rule(&mut self, name: &str) -> Result<Option<Rule>, CalibrationError> {
        if !self.ready.contains_key(name) && self.weights.iter().any(|(own, ..)| own == name) {
            self.collect(name)?;
        }
        let found = self.ready.remove(name).filter(|found| found.tokens > 0);
        Ok(found.map(|found| Rule::new(self.method, found)))
    }

    /// Runs the samples for the weights from `first` on, as many as the memory allows.
    fn collect(&mut self, first: &str) -> Result<(), CalibrationError> {
        let mut left = self.memory;
        let mut wanted = BTreeMap::new();
        let following = self.weights.iter().skip_while(|(name, ..)| name != first);
        for (name, width, products) in following {
            let bytes = if *products { 4 * width * width } else { 0 };
            if bytes > left && !wanted.is_empty() {
                break;
            }
            left = left.saturating_sub(bytes);
            wanted.insert(name.clone(), InputStatistics::new(*width, *products));
        }
        log::info!(
            "collecting statistics of {} weights from {first} on",
            wanted.len()
        );
        let wanted = Rc::new(RefCell::new(wanted));
        let seen = wanted.clone();
        let observer = observe::start(move |name, inputs| {
            if let Some(statistics) = seen.borrow_mut().get_mut(name) {
                statistics.add(inputs.values);
            }
        });
        let outcome = self.model.run();
        drop(observer);
        outcome?;
        self.ready = wanted.take();
        Ok(())
    }
}

/// How a weight is quantized.
pub(crate) struct Rule {
    method: Method,
    /// The mean square of each input.
    pub mean_squares: Vec<f32>,
    hessian: Option<Hessian>,
}

impl Rule {
    fn new(method: Method, statistics: InputStatistics) -> Self {
        let width = statistics.squares.len();
        let mean_squares = statistics.mean_squares();
        let products = statistics.into_mean_products();
        Self {
            method,
            mean_squares,
            hessian: products.map(|products| Hessian::new(products, width)),
        }
    }

    /// Returns `true` if the quants are chosen with the products of the inputs, by all threads.
    pub fn rounds(&self) -> bool {
        self.hessian.is_some()
    }

    /// Quantizes whole panels of rows and appends them to `out`. Returns the packed rows.
    ///
    /// # Errors
    /// If a value cannot be packed.
    pub fn pack(
        &self,
        shape: MatrixShape,
        rows: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let mut quantized = quantize(shape, rows, &self.mean_squares)?;
        if let Some(hessian) = &self.hessian {
            rounding::gptq(rows, hessian, &mut quantized);
            if self.method == Method::Best {
                rounding::improve(rows, hessian, &mut quantized);
            }
        }
        let Quantized {
            quants,
            sub_scales,
            scales,
        } = &quantized;
        pack_quants(shape, quants, sub_scales, scales, out)
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
