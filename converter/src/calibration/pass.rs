//! The pass of all samples through the model, weight by weight.
//!
//! The samples wait at a weight until all that can come to it are there. The weight is then quantized
//! by their inputs, and they go on with the quantized weight. The inputs of later weights are
//! therefore those that the record will see, and the float values of one weight are in memory at a
//! time.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes};
use edge_lmm_kernels::{pack_rows, pool};
use edge_lmm_models::weights::Part;
use edge_lmm_ops::observe::Supplied;
use edge_lmm_ops::{Format, MatrixShape};

use super::hessian::{DAMPING, PRUNED_DAMPING};
use super::model::Model;
use super::objective::ranges;
use super::packed_weights::PackedWeights;
use super::products::{self, for_parts};
use super::scales::Scales;
use super::stream::{Need, Stream};
use super::{CalibrationError, InputStatistics, Method, Rule, SavedStatistics};
use crate::pack;
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::rows::read_rows;
use crate::source::Checkpoint;

/// A packed matrix, shared by the samples that use it.
#[derive(Clone)]
struct Matrix {
    shape: MatrixShape,
    bytes: bytes::Bytes,
}

impl Matrix {
    fn supplied(&self) -> Supplied {
        Supplied {
            shape: self.shape,
            bytes: Bytes::from_shared(self.bytes.clone(), AllocationProperty::Other),
        }
    }
}

/// A need of the quantized model, and the input in the float model.
type Pause = (Need, Option<Vec<f32>>);

/// A sample in the quantized model, and in the float model if a method compares them.
pub(super) struct Sample {
    quantized: Stream,
    float: Option<Stream>,
    /// Index of the weight that it waits for; `None` at its end.
    waiting: Option<usize>,
}

impl Sample {
    /// Starts a sample.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start<S>(
        sample: S,
        model: &Arc<Model>,
        float: Option<&Arc<Model>>,
    ) -> Result<Self, CalibrationError>
    where
        S: Fn(&Model) -> Result<(), CalibrationError> + Clone + Send + 'static,
    {
        let start = |model: &Arc<Model>| {
            let (model, sample) = (model.clone(), sample.clone());
            Stream::start(pool::global(), move || sample(&model))
        };
        Ok(Self {
            float: float.map(start).transpose()?,
            quantized: start(model)?,
            waiting: None,
        })
    }

    /// Waits for the next need of both models, which is the same up to the values of inputs; `None`
    /// at the end. The last item is the input in the float model.
    fn next(&mut self) -> Result<Option<Pause>, CalibrationError> {
        let float = match &mut self.float {
            Some(float) => float.next()?,
            None => None,
        };
        let inputs = match float {
            Some(Need::Product { inputs, .. }) => Some(inputs),
            _ => None,
        };
        Ok(self.quantized.next()?.map(|need| (need, inputs)))
    }
}

/// State of the pass.
pub(super) struct Pass<'a> {
    pub plan: &'a Plan,
    /// The plan of the float model, if channels were pruned. It has the same weights.
    pub unpruned: Option<&'a Plan>,
    pub checkpoint: &'a Checkpoint,
    pub method: Method,
    /// Bytes of samples and statistics.
    pub memory: usize,
    pub progress: &'a dyn Fn(&str, usize),
    pub packed: PackedWeights,
    pub samples: Vec<Sample>,
    /// Inputs of the weights that samples wait for.
    pub statistics: BTreeMap<usize, InputStatistics>,
    /// Statistics of the weights that are quantized.
    pub saved: SavedStatistics,
    /// Scales of the inputs of quantized weights.
    pub scales: Scales,
}

impl Pass<'_> {
    /// Runs all samples to their ends and packs the weights that they use.
    ///
    /// # Errors
    /// If a sample cannot be run, or a weight cannot be read or packed.
    pub fn run(&mut self) -> Result<(), ConvertError> {
        for sample in 0..self.samples.len() {
            self.advance(sample)?;
        }
        while let Some(weight) = self.next_weight() {
            let matrix = self.quantize(weight)?;
            let has_float = self.samples.iter().any(|sample| sample.float.is_some());
            let float = has_float.then(|| self.float(weight)).transpose()?;
            for sample in 0..self.samples.len() {
                if self.samples[sample].waiting == Some(weight) {
                    self.supply(sample, &matrix, float.as_ref());
                    self.advance(sample)?;
                }
            }
        }
        Ok(())
    }

    /// Packs the weights that saved statistics know.
    ///
    /// # Errors
    /// If the statistics belong to another model, or a weight cannot be read or packed.
    pub fn use_saved(&mut self, saved: &SavedStatistics) -> Result<(), ConvertError> {
        for (index, weight) in self.plan.weights.iter().enumerate() {
            let quantized = weight.format.is_some_and(Format::is_quantized);
            if quantized && let Some(found) = saved.of(&weight.spec.name, weight.spec.cols())? {
                let statistics = InputStatistics::of_mean_squares(found);
                self.pack_by(index, statistics)?;
            }
        }
        Ok(())
    }

    fn supply(&self, sample: usize, matrix: &Matrix, float: Option<&Matrix>) {
        let sample = &self.samples[sample];
        sample.quantized.supply(matrix.supplied());
        if let Some(stream) = &sample.float {
            stream.supply(float.unwrap_or(matrix).supplied());
        }
    }

    /// Returns the weight to be quantized next. The samples that wait for later parts of the model
    /// wait for those that are still in an encoder.
    fn next_weight(&self) -> Option<usize> {
        let waiting = self.samples.iter().filter_map(|sample| sample.waiting);
        waiting.min_by_key(|&index| {
            let spec = &self.plan.weights[index].spec;
            let rank = match spec.part {
                Part::Vision | Part::Audio => 0,
                Part::Projector => 1,
                // The head is the last, though it may be the table of embeddings.
                Part::Text => 2 + u8::from(spec.is_vocabulary()),
            };
            (rank, index)
        })
    }

    /// Lets a sample run until it needs a weight that is not quantized yet.
    fn advance(&mut self, sample: usize) -> Result<(), ConvertError> {
        loop {
            self.samples[sample].waiting = None;
            let Some((need, of_float)) = self.samples[sample].next()? else {
                return Ok(());
            };
            let (name, inputs) = match need {
                Need::Rows { name, ids } => {
                    let rows = self.rows(self.index(&name)?, &ids)?;
                    self.supply(sample, &rows, None);
                    continue;
                }
                Need::Product { name, inputs } => (name, inputs),
            };
            let index = self.index(&name)?;
            let spec = &self.plan.weights[index].spec;
            if self.packed.contains(&name) {
                let float = of_float.map(|_| self.float(index)).transpose()?;
                let matrix = self.read(index)?;
                self.supply(sample, &matrix, float.as_ref());
            } else if inputs.len() <= spec.cols() && !spec.is_vocabulary() {
                // One token says too little about the inputs: the first one of a decoder whose
                // other tokens follow.
                let matrix = self.unpacked(&self.plan.weights[index])?;
                let float = of_float.map(|_| self.float(index)).transpose()?;
                self.supply(sample, &matrix, float.as_ref());
            } else {
                self.add(index, &inputs, of_float.as_deref());
                self.samples[sample].waiting = Some(index);
                return Ok(());
            }
        }
    }

    fn index(&self, name: &str) -> Result<usize, CalibrationError> {
        let mut all = self.plan.weights.iter();
        let found = all.position(|weight| weight.spec.name == name);
        found.ok_or_else(|| CalibrationError::Model {
            reason: format!("it has an unknown weight {name}"),
        })
    }

    fn add(&mut self, index: usize, inputs: &[f32], float: Option<&[f32]>) {
        let weight = &self.plan.weights[index];
        let width = weight.spec.cols();
        let new = || match self.method.needs_products(weight, self.plan) {
            true => InputStatistics::new(width, ranges(width, self.memory)),
            false => InputStatistics::new(width, []),
        };
        let statistics = self.statistics.entry(index).or_insert_with(new);
        // Weights that are moved for the head would be worse embeddings.
        let is_table = weight.spec.is_vocabulary() && weight.spec.name != "text.head.weight";
        let float = float.filter(|_| !is_table);
        if self.method.is_calibrated() {
            statistics.add(inputs, float, &weight.spec.columns);
        }
    }

    fn quantize(&mut self, index: usize) -> Result<Matrix, ConvertError> {
        let weight = &self.plan.weights[index];
        let found = self.statistics.remove(&index);
        let quantized = weight.format.is_some_and(Format::is_quantized);
        match found.filter(|found| quantized && found.tokens > 0) {
            Some(found) => {
                self.saved.add(&weight.spec.name, found.mean_squares());
                self.pack_by(index, found)
            }
            None => self.pack(index, None),
        }
    }

    /// Quantizes a weight by the statistics of its inputs.
    fn pack_by(
        &mut self,
        index: usize,
        mut statistics: InputStatistics,
    ) -> Result<Matrix, ConvertError> {
        let weight = &self.plan.weights[index];
        if self.method == Method::Awq {
            let squares = statistics.mean_squares();
            let (plan, checkpoint) = (self.plan, self.checkpoint);
            (self.scales).choose(index, &squares, plan, checkpoint, &mut self.packed)?;
        }
        if let Some(scales) = self.scales.of_columns(&weight.spec) {
            statistics.divide(&scales);
        }
        let unpruned = self.unpruned.map(|plan| &plan.weights[index]);
        let unpruned = unpruned.filter(|unpruned| unpruned.spec.cols() != weight.spec.cols());
        let damping = match self.unpruned {
            Some(_) if weight.spec.part == Part::Text => PRUNED_DAMPING,
            _ => DAMPING,
        };
        let rule = Rule::new(self.method, statistics, damping, unpruned.cloned());
        self.pack(index, Some(&rule))
    }

    /// Packs a weight with its columns multiplied by their scales. Returns the matrix for inputs
    /// without scales.
    fn pack(&mut self, index: usize, rule: Option<&Rule>) -> Result<Matrix, ConvertError> {
        let mut weight = self.plan.weights[index].clone();
        if let Some(scales) = self.scales.of_columns(&weight.spec) {
            weight.factors.multiply_columns(&scales);
        }
        let name = &*weight.spec.name;
        (self.progress)(name, 0);
        let progress = |bytes| (self.progress)(name, bytes);
        let shape = shape(&weight, weight.format.unwrap_or(Format::F32));
        let packed = pack::pack(self.checkpoint, &weight, shape.format, rule, &progress);
        let (bytes, stats) = packed?;
        self.packed.add(name, &bytes, stats)?;
        for file in &self.checkpoint.files {
            file.release();
        }
        let bytes = bytes.into();
        Ok(self.without_scales(index, Matrix { shape, bytes }))
    }

    /// Returns the matrix for inputs without scales that has the outputs of a packed weight for scaled
    /// ones.
    fn without_scales(&self, index: usize, packed: Matrix) -> Matrix {
        let Some(scales) = self.scales.of_columns(&self.plan.weights[index].spec) else {
            return packed;
        };
        let matrix = edge_lmm_kernels::Matrix::new(packed.shape, &packed.bytes);
        let matrix = matrix.expect("the packed bytes are those of the shape");
        let mut values = vec![0.0; packed.shape.rows * packed.shape.cols];
        for_parts(&mut values, packed.shape.cols, |row, values| {
            matrix.row_into(row, values);
            values.iter_mut().zip(&scales).for_each(|(w, s)| *w /= s);
        });
        let shape = MatrixShape {
            format: Format::F32,
            ..packed.shape
        };
        let bytes = products::packed(&values, shape.cols).into();
        Matrix { shape, bytes }
    }

    /// Returns a weight that is quantized already.
    fn read(&mut self, index: usize) -> Result<Matrix, ConvertError> {
        let weight = &self.plan.weights[index];
        let found = self.packed.read(&weight.spec.name)?;
        let (bytes, _) = found.expect("the weight is packed");
        let packed = Matrix {
            shape: shape(weight, weight.format.unwrap_or(Format::F32)),
            bytes: bytes.into(),
        };
        Ok(self.without_scales(index, packed))
    }

    /// Returns a weight of the float model.
    fn float(&self, index: usize) -> Result<Matrix, ConvertError> {
        self.unpacked(&self.unpruned.unwrap_or(self.plan).weights[index])
    }

    /// Returns a weight in single precision.
    fn unpacked(&self, weight: &PlannedWeight) -> Result<Matrix, ConvertError> {
        let packed = pack::pack(self.checkpoint, weight, Format::F32, None, &|_| {});
        Ok(Matrix {
            shape: shape(weight, Format::F32),
            bytes: packed?.0.into(),
        })
    }

    /// Returns rows of a weight in single precision.
    fn rows(&self, index: usize, ids: &[u32]) -> Result<Matrix, ConvertError> {
        let weight = &self.plan.weights[index];
        let mut values = Vec::with_capacity(ids.len() * weight.spec.cols());
        for &id in ids {
            let row = id as usize..id as usize + 1;
            read_rows(self.checkpoint, weight, row, &mut values)?;
        }
        let shape = MatrixShape::new(Format::F32, ids.len(), weight.spec.cols());
        let mut bytes = Vec::new();
        pack_rows(shape, &values, &mut bytes).map_err(|error| ConvertError::Pack {
            weight: weight.spec.name.clone(),
            reason: error.to_string(),
        })?;
        let bytes = bytes.into();
        Ok(Matrix { shape, bytes })
    }
}

fn shape(weight: &PlannedWeight, format: Format) -> MatrixShape {
    MatrixShape::new(format, weight.spec.rows(), weight.spec.cols())
}
