//! The divergence of the predictions that one weight in 4 bits causes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes};
use edge_lmm::manifest::{Manifest, Question};
use edge_lmm_kernels::{Activation, Matrix, pack_rows, pool, product};
use edge_lmm_ops::observe::{self, Supplied, Use};
use edge_lmm_ops::{Format, MatrixShape};
use edge_lmm_record::Record;

use crate::calibration::{CalibrationError, Model, Samples};
use crate::compare::Distribution;
use crate::pack;
use crate::plan::{ConvertError, Plan};
use crate::planned_weight::PlannedWeight;
use crate::source::Checkpoint;
use crate::write::write_record;

/// Tokens of all texts together.
const TOKENS: usize = 4 * 512;
/// Most questions.
const QUESTIONS: usize = 32;
/// Most positions whose predictions are compared.
const POSITIONS: usize = 256;
/// Positions whose scores are in memory at once.
const CHUNK: usize = 16;

/// The sensitivity of the predictions to one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Name in the record.
    pub name: String,
    /// Mean Kullback-Leibler divergence of the predictions with this weight in 4 bits from those with
    /// all weights in 8 bits, in nats.
    pub divergence: f64,
    /// Bytes that the weight needs more in 8 bits.
    pub bytes: usize,
}

impl Sensitivity {
    /// Returns the divergence per byte.
    pub fn per_byte(&self) -> f64 {
        self.divergence / self.bytes.max(1) as f64
    }
}

/// Measures `weights` one by one, of a model whose other weights have 8 bits.
///
/// # Errors
/// If the samples do not fit the model, or the temporary file `path` cannot be written.
pub(super) fn measure(
    eight_bits: &Plan,
    weights: &[&PlannedWeight],
    checkpoint: &Arc<Checkpoint>,
    samples: &Samples,
    path: &Path,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Sensitivity>, ConvertError> {
    let runs = Runs::new(eight_bits, checkpoint, samples, path)?;
    let reference = runs.hidden(None)?;
    let mut sensitivities = Vec::new();
    for (done, weight) in weights.iter().enumerate() {
        progress(done, weights.len());
        let (packed, _) = pack::pack(checkpoint, weight, Format::Q4, None, &|_| {})?;
        let shape = MatrixShape::new(Format::Q4, weight.spec.rows(), weight.spec.cols());
        let larger = MatrixShape {
            format: Format::Q8,
            ..shape
        };
        let changed = Changed {
            name: weight.spec.name.clone(),
            shape,
            bytes: packed.into(),
        };
        let bytes = larger.byte_len().unwrap_or_default();
        sensitivities.push(Sensitivity {
            name: weight.spec.name.clone(),
            divergence: runs.divergence(&reference, changed)?,
            bytes: bytes.saturating_sub(weight.bytes),
        });
    }
    Ok(sensitivities)
}

/// A weight in another format than the record's.
#[derive(Clone)]
struct Changed {
    name: String,
    shape: MatrixShape,
    bytes: bytes::Bytes,
}

enum Sample {
    Text(Vec<u32>),
    Question(Arc<Manifest>, Question),
}

/// The samples and the model that they run through.
struct Runs {
    model: Model,
    samples: Vec<Sample>,
    record: Arc<Record>,
    /// The packed weights of the record.
    shapes: Rc<BTreeMap<String, MatrixShape>>,
    /// Name of the output head.
    head: String,
}

impl Runs {
    fn new(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        samples: &Samples,
        path: &Path,
    ) -> Result<Self, ConvertError> {
        let model = Model::new(plan, checkpoint)?;
        let windows = samples.windows(&checkpoint.tokenizer, model.context_length(), TOKENS)?;
        let questions = samples.questions();
        let step = questions.len().div_ceil(QUESTIONS).max(1);
        let questions = questions.into_iter().step_by(step);
        let questions = questions.map(|(manifest, question)| Sample::Question(manifest, question));
        let samples = windows.into_iter().map(Sample::Text).chain(questions);
        let head = (plan.weights.iter())
            .find(|weight| weight.spec.is_vocabulary() && weight.spec.product)
            .ok_or_else(|| CalibrationError::Model {
                reason: "it has no output head".to_owned(),
            })?;
        let packed = plan.weights.iter().filter_map(|weight| {
            let shape = MatrixShape::new(weight.format?, weight.spec.rows(), weight.spec.cols());
            Some((weight.spec.name.clone(), shape))
        });
        write_record(plan, checkpoint.clone(), path, |_, _| {})?;
        let record = Record::open(path);
        // On Unix, the mapping keeps the contents, and nothing is left behind whatever happens.
        let removed = std::fs::remove_file(path);
        let record = record.map_err(|error| CalibrationError::Model {
            reason: edge_lmm::one_line(&error),
        })?;
        if let Err(error) = removed {
            log::warn!("cannot remove {}: {error}", path.display());
        }
        Ok(Self {
            model,
            samples: samples.collect(),
            record: Arc::new(record),
            shapes: Rc::new(packed.collect()),
            head: head.spec.name.clone(),
        })
    }

    /// Runs the samples and returns the inputs of the output head: `[positions, width]`.
    fn hidden(&self, changed: Option<&Changed>) -> Result<Vec<f32>, ConvertError> {
        let weights = Rc::new(RefCell::new(Weights {
            record: self.record.clone(),
            shapes: self.shapes.clone(),
            head: self.head.clone(),
            changed: changed.cloned(),
            hidden: Vec::new(),
        }));
        let supplier = weights.clone();
        let _supplier =
            observe::supply(move |name, usage| supplier.borrow_mut().supply(name, usage));
        for sample in &self.samples {
            match sample {
                Sample::Text(ids) => self.model.run_text(ids)?,
                Sample::Question(manifest, question) => {
                    self.model.run_question(manifest, question)?;
                }
            }
        }
        let hidden = std::mem::take(&mut weights.borrow_mut().hidden);
        if hidden.is_empty() {
            return Err(CalibrationError::Samples {
                reason: "no sample passes the model".to_owned(),
            }
            .into());
        }
        Ok(hidden)
    }

    /// Returns the mean divergence of the predictions with a changed weight.
    fn divergence(&self, reference: &[f32], changed: Changed) -> Result<f64, ConvertError> {
        let hidden = self.hidden(Some(&changed))?;
        let shape = self.shapes[&self.head];
        let own = self.record.bytes_of(&self.head).unwrap_or_default();
        let of = |shape, bytes| Matrix::new(shape, bytes).expect("the size of a weight is checked");
        let own = of(shape, own);
        let head = match changed.name == self.head {
            true => of(changed.shape, &changed.bytes),
            false => own,
        };
        let pool = pool::global();
        let width = shape.cols;
        let positions = reference.len().min(hidden.len()) / width;
        let step = positions.div_ceil(POSITIONS);
        let scores = |head: &Matrix<'_>, hidden: &[f32], rows: &[usize]| {
            let hidden: Vec<f32> = (rows.iter())
                .flat_map(|row| hidden[row * width..][..width].iter().copied())
                .collect();
            product(&pool, head, &hidden, rows.len(), None, Activation::None)
        };
        let (mut sum, mut count) = (0.0, 0);
        let chosen: Vec<usize> = (0..positions).step_by(step).collect();
        for rows in chosen.chunks(CHUNK) {
            let expected = scores(&own, reference, rows);
            let found = scores(&head, &hidden, rows);
            let vocabulary = shape.rows;
            for (expected, found) in
                (expected.chunks_exact(vocabulary)).zip(found.chunks_exact(vocabulary))
            {
                let expected = Distribution::new(expected);
                sum += expected.predict(&Distribution::new(found), 0).divergence;
                count += 1;
            }
        }
        Ok(sum / f64::from(count.max(1)))
    }
}

/// The weights of a run.
struct Weights {
    record: Arc<Record>,
    shapes: Rc<BTreeMap<String, MatrixShape>>,
    head: String,
    changed: Option<Changed>,
    /// Inputs of the head so far.
    hidden: Vec<f32>,
}

impl Weights {
    fn supply(&mut self, name: &str, usage: Use<'_>) -> Supplied {
        let Changed { shape, bytes, .. } = self.weight(name);
        match usage {
            Use::Product(inputs) => {
                if name == self.head {
                    self.hidden.extend_from_slice(inputs.values);
                }
                Supplied {
                    shape,
                    bytes: Bytes::from_shared(bytes, AllocationProperty::Other),
                }
            }
            Use::Rows(ids) => rows(shape, &bytes, ids),
        }
    }

    /// Returns the weight to use.
    fn weight(&self, name: &str) -> Changed {
        if let Some(changed) = self.changed.as_ref().filter(|changed| changed.name == name) {
            return changed.clone();
        }
        let shape = self.shapes.get(name).copied();
        let held = Held {
            record: self.record.clone(),
            name: name.to_owned(),
        };
        Changed {
            name: name.to_owned(),
            shape: shape.expect("the model has the weights of its plan"),
            bytes: bytes::Bytes::from_owner(held),
        }
    }
}

/// The bytes of a weight, which stay in the record.
struct Held {
    record: Arc<Record>,
    name: String,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.record.bytes_of(&self.name).unwrap_or_default()
    }
}

/// Returns rows of a packed matrix as a matrix in single precision.
fn rows(shape: MatrixShape, bytes: &[u8], ids: &[u32]) -> Supplied {
    let matrix = Matrix::new(shape, bytes).expect("the size of a weight is checked");
    let mut values = vec![0.0; ids.len() * shape.cols];
    for (&id, row) in ids.iter().zip(values.chunks_exact_mut(shape.cols)) {
        matrix.row_into(id as usize, row);
    }
    let shape = MatrixShape::new(Format::F32, ids.len(), shape.cols);
    let mut bytes = Vec::new();
    pack_rows(shape, &values, &mut bytes).expect("the values of a record are finite");
    Supplied {
        shape,
        bytes: Bytes::from_bytes_vec(bytes),
    }
}
