//! Predictions of a model on samples, whose packed weights come from a mapped temporary record.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes};
use edge_lmm_kernels::{Activation, Matrix, pack_rows, pool, product};
use edge_lmm_ops::observe::{self, Supplied, Use};
use edge_lmm_ops::{Format, MatrixShape};

use crate::calibration::{CalibrationError, Example, Model, Samples, spread};
use crate::compare::Distribution;
use crate::plan::{ConvertError, Plan};
use crate::progress::Progress;
use crate::source::Checkpoint;
use crate::temporary_record::TemporaryRecord;

/// Tokens of all texts together.
const TOKENS: usize = 2 * 512;
/// Most questions.
const QUESTIONS: usize = 16;
/// Most positions whose predictions are compared.
const POSITIONS: usize = 256;
/// Positions whose scores are in memory at once.
const CHUNK: usize = 16;

/// A packed weight.
#[derive(Clone)]
pub(crate) struct PackedWeight {
    /// Name in the record.
    pub name: String,
    /// Format and size.
    pub shape: MatrixShape,
    /// The packed bytes.
    pub bytes: bytes::Bytes,
}

impl PackedWeight {
    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.shape, &self.bytes).expect("the size of a weight is checked")
    }
}

enum Sample {
    Text(Vec<u32>),
    Example(Example),
}

/// A model and the samples that run through it.
pub(crate) struct Predictor {
    model: Model,
    samples: Vec<Sample>,
    stored: Rc<Stored>,
    /// Name of the output head.
    head: String,
}

/// The packed weights of a record.
struct Stored {
    record: Arc<TemporaryRecord>,
    shapes: BTreeMap<String, MatrixShape>,
}

impl Predictor {
    /// Writes the record of a plan to the temporary file `path` and maps it.
    ///
    /// # Errors
    /// If the file cannot be written, or the samples do not fit the model.
    pub fn new(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        samples: &Samples,
        path: &Path,
        progress: &Progress,
    ) -> Result<Self, ConvertError> {
        let model = Model::new(plan, checkpoint)?;
        let windows = samples.windows(&checkpoint.tokenizer, model.context_length(), TOKENS)?;
        let examples = spread(&model.examples(samples), QUESTIONS).into_iter();
        let examples = examples.map(Sample::Example);
        let samples = windows.into_iter().map(Sample::Text).chain(examples);
        let head = (plan.weights.iter())
            .find(|weight| weight.spec.is_vocabulary() && weight.spec.product)
            .ok_or_else(|| CalibrationError::Model {
                reason: "it has no output head".to_owned(),
            })?;
        let packed = plan.weights.iter().filter_map(|weight| {
            let shape = MatrixShape::new(weight.format?, weight.spec.rows(), weight.spec.cols());
            Some((weight.spec.name.clone(), shape))
        });
        let stored = Stored {
            record: Arc::new(TemporaryRecord::write(plan, checkpoint, path, progress)?),
            shapes: packed.collect(),
        };
        Ok(Self {
            model,
            samples: samples.collect(),
            stored: Rc::new(stored),
            head: head.spec.name.clone(),
        })
    }

    /// Runs the samples, with another weight in place of that of the same name.
    ///
    /// # Errors
    /// If the samples do not fit the model.
    pub fn run(&self, changed: Option<PackedWeight>) -> Result<Predictions, ConvertError> {
        let weights = Rc::new(RefCell::new(Weights {
            stored: self.stored.clone(),
            head: self.head.clone(),
            changed,
            hidden: Vec::new(),
        }));
        let supplier = weights.clone();
        let supplying =
            observe::supply(move |name, usage| supplier.borrow_mut().supply(name, usage));
        for sample in &self.samples {
            match sample {
                Sample::Text(ids) => self.model.run_text(ids)?,
                Sample::Example(example) => self.model.run_example(example)?,
            }
        }
        drop(supplying);
        let mut weights = weights.borrow_mut();
        let hidden = std::mem::take(&mut weights.hidden);
        if hidden.is_empty() {
            return Err(CalibrationError::Samples {
                reason: "no sample passes the model".to_owned(),
            }
            .into());
        }
        Ok(Predictions {
            hidden,
            head: weights.weight(&self.head),
        })
    }
}

/// The predictions of a model on its samples.
pub(crate) struct Predictions {
    /// Inputs of the output head: `[positions, width]`.
    hidden: Vec<f32>,
    head: PackedWeight,
}

impl Predictions {
    /// Returns the mean Kullback-Leibler divergence of other predictions on the same samples from
    /// these, in nats.
    pub fn divergence(&self, other: &Self) -> f64 {
        let vocabulary = self.head.shape.rows;
        let step = self.positions().min(other.positions()).div_ceil(POSITIONS);
        let places: Vec<usize> = (0..self.positions().min(other.positions()))
            .step_by(step.max(1))
            .collect();
        let mut sum = 0.0;
        for places in places.chunks(CHUNK) {
            let (expected, found) = (self.scores(places), other.scores(places));
            let pairs = expected
                .chunks_exact(vocabulary)
                .zip(found.chunks_exact(vocabulary));
            for (expected, found) in pairs {
                let expected = Distribution::new(expected);
                sum += expected.predict(&Distribution::new(found), 0).divergence;
            }
        }
        sum / places.len().max(1) as f64
    }

    fn positions(&self) -> usize {
        self.hidden.len() / self.head.shape.cols
    }

    /// Returns the scores of all tokens at some positions.
    fn scores(&self, places: &[usize]) -> Vec<f32> {
        let width = self.head.shape.cols;
        let hidden: Vec<f32> = (places.iter())
            .flat_map(|place| self.hidden[place * width..][..width].iter().copied())
            .collect();
        let pool = pool::global();
        product(
            &pool,
            &self.head.matrix(),
            &hidden,
            places.len(),
            None,
            Activation::None,
        )
    }
}

/// The weights of a run.
struct Weights {
    stored: Rc<Stored>,
    head: String,
    changed: Option<PackedWeight>,
    /// Inputs of the head so far.
    hidden: Vec<f32>,
}

impl Weights {
    fn supply(&mut self, name: &str, usage: Use<'_>) -> Supplied {
        let weight = self.weight(name);
        match usage {
            Use::Product(inputs) => {
                if name == self.head {
                    self.hidden.extend_from_slice(inputs.values);
                }
                Supplied {
                    shape: weight.shape,
                    bytes: Bytes::from_shared(weight.bytes, AllocationProperty::Other),
                }
            }
            Use::Rows(ids) => rows(&weight.matrix(), ids),
        }
    }

    /// Returns the weight to use.
    fn weight(&self, name: &str) -> PackedWeight {
        if let Some(changed) = self.changed.as_ref().filter(|changed| changed.name == name) {
            return changed.clone();
        }
        let shape = self.stored.shapes.get(name).copied();
        let held = Held {
            record: self.stored.record.clone(),
            name: name.to_owned(),
        };
        PackedWeight {
            name: name.to_owned(),
            shape: shape.expect("the model has the weights of its plan"),
            bytes: bytes::Bytes::from_owner(held),
        }
    }
}

/// The bytes of a weight, which stay in the record.
struct Held {
    record: Arc<TemporaryRecord>,
    name: String,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.record.bytes_of(&self.name).unwrap_or_default()
    }
}

/// Returns rows of a packed matrix as a matrix in single precision.
fn rows(matrix: &Matrix<'_>, ids: &[u32]) -> Supplied {
    let width = matrix.shape().cols;
    let mut values = vec![0.0; ids.len() * width];
    for (&id, row) in ids.iter().zip(values.chunks_exact_mut(width)) {
        matrix.row_into(id as usize, row);
    }
    let shape = MatrixShape::new(Format::F32, ids.len(), width);
    let mut bytes = Vec::new();
    pack_rows(shape, &values, &mut bytes).expect("the values of a record are finite");
    Supplied {
        shape,
        bytes: Bytes::from_bytes_vec(bytes),
    }
}
