//! The model that runs the samples. Its packed weights are supplied while it runs.

use std::ops::ControlFlow;
use std::rc::Rc;

use burn::module::ParamId;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_store::{BurnpackStore, BurnpackWriter, TensorSnapshot};
use edge_lmm::estimate::StoredWeight;
use edge_lmm::record::{Description, PackedFormat};
use edge_lmm::{Cpu, Engine, EngineError, one_line};
use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::{DecoderState, LanguageModel, OutputRows, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::weights::Storage;
use edge_lmm_ops::Format;

use super::example::{Example, ExampleSize};
use super::{CalibrationError, Samples};
use crate::pack;
use crate::plan::{ConvertError, Plan};
use crate::source::Checkpoint;

/// One in so many tokens of text passes the output head, which is large and sees what the last norm
/// gives.
const HEAD_STRIDE: usize = 16;

/// The model for texts, and the same with its media and prompts.
pub(crate) struct Model {
    text: Box<dyn BuiltModel<Cpu>>,
    engine: Engine<Cpu>,
}

impl Model {
    /// Builds the model of a plan with the weights that are never packed.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn new(plan: &Plan, checkpoint: &Checkpoint) -> Result<Self, ConvertError> {
        let mut info = plan.info.clone();
        for format in info.formats.values_mut() {
            *format = PackedFormat(Format::F32);
        }
        let description = Description {
            info: &info,
            tokenizer: &checkpoint.tokenizer,
            template: checkpoint.chat_template.as_deref(),
        };
        let stored = |weight: &crate::PlannedWeight| StoredWeight {
            spec: weight.spec.clone(),
            bytes: weight.bytes,
        };
        let weights = plan.weights.iter().map(stored).collect();
        let engine = Engine::with_model(
            build(plan, checkpoint, &description)?,
            description,
            weights,
            0,
            Default::default(),
        );
        Ok(Self {
            text: build(plan, checkpoint, &description)?,
            engine: engine.map_err(|error| failed(&error))?,
        })
    }

    /// Returns the largest number of positions.
    pub fn context_length(&self) -> usize {
        self.text.language().context_length()
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.text.language().vocabulary()
    }

    /// Runs the language model over a text, with its layer that predicts further tokens.
    ///
    /// # Errors
    /// If the model cannot compute it.
    pub fn run_text(&self, ids: &[u32]) -> Result<(), CalibrationError> {
        let language = self.text.language();
        let (hidden, mut state) = run(language, ids, true).map_err(|error| failed(&error))?;
        if let (Some(mtp), Some(layer)) = (&mut state.mtp, language.mtp()) {
            mtp.process(layer, OutputRows::All);
        }
        let [rows, _] = hidden.dims();
        let some = (0..rows).step_by(HEAD_STRIDE);
        let some = some.map(|row| hidden.clone().narrow(0, row, 1)).collect();
        language.logits(Tensor::cat(some, 0));
        Ok(())
    }

    /// Returns the examples among the samples.
    pub fn examples(&self, samples: &Samples) -> Vec<Example> {
        samples.examples(&*self.text)
    }

    /// Returns the size of an example; nothing of a medium that the model does not support.
    ///
    /// # Errors
    /// If the medium cannot be read.
    pub fn size(&self, example: &Example) -> Result<ExampleSize, CalibrationError> {
        match example.size(&*self.text) {
            Err(EngineError::Model(ModelError::Unsupported { .. })) => Ok(ExampleSize::default()),
            size => size.map_err(|error| of_example(example, &error)),
        }
    }

    /// Runs the model over an example with its answer.
    ///
    /// # Errors
    /// If the medium cannot be read, or the example does not fit the model.
    pub fn run_example(&self, example: &Example) -> Result<(), CalibrationError> {
        let outcome = example.run(&self.engine);
        outcome.map_err(|error| of_example(example, &error))
    }
}

fn of_example(example: &Example, error: &EngineError) -> CalibrationError {
    CalibrationError::Samples {
        reason: format!("{}: {}", example.name, one_line(error)),
    }
}

/// Runs the language model over a text. Returns the output of its last norm: `[tokens, width]`.
///
/// # Errors
/// If the model cannot compute it.
pub(crate) fn prefill_text(
    language: &dyn LanguageModel<Cpu>,
    ids: &[u32],
) -> Result<Tensor<Cpu, 2>, ModelError> {
    run(language, ids, false).map(|(hidden, _)| hidden)
}

/// Works as [`prefill_text`], and returns the state with the output. The layer that predicts further
/// tokens follows the text if `follows` says so.
fn run(
    language: &dyn LanguageModel<Cpu>,
    ids: &[u32],
    follows: bool,
) -> Result<(Tensor<Cpu, 2>, DecoderState<Cpu>), ModelError> {
    let positions: Vec<Position> = (0..ids.len() as u32).map(|at| [at; 3]).collect();
    let mut state = DecoderState::<Cpu>::new(language, ids.len(), &Default::default())?;
    state.follow_with_mtp(language, follows, &Default::default())?;
    let mut go_on = |_| ControlFlow::Continue(());
    let input = StepInput {
        output: OutputRows::All,
        ..StepInput::new(language.embed(ids), &positions)
    };
    let hidden = language.prefill(input, &mut state, &mut Monitor::new(&mut go_on))?;
    Ok((hidden, state))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> CalibrationError {
    CalibrationError::Model {
        reason: one_line(error),
    }
}

/// Builds the model and fills the weights that are never packed. The others stay unallocated.
fn build(
    plan: &Plan,
    checkpoint: &Checkpoint,
    description: &Description<'_>,
) -> Result<Box<dyn BuiltModel<Cpu>>, ConvertError> {
    let device = Default::default();
    let (mut model, _) = (description.info).skeleton::<Cpu>(&Registry::default(), &device)?;
    let mut snapshots = Vec::new();
    for (weight, id) in plan.weights.iter().zip(1..) {
        let Storage::Dense { cols } = weight.spec.storage else {
            continue;
        };
        let values = pack::dense(checkpoint, weight)?;
        let shape: Vec<usize> = std::iter::once(weight.spec.rows()).chain(cols).collect();
        let data = TensorData::new(values, shape.clone());
        snapshots.push(TensorSnapshot::from_closure(
            Rc::new(move || Ok(data.clone())),
            DType::F32,
            Shape::from(shape),
            weight.spec.name.split('.').map(str::to_owned).collect(),
            Vec::new(),
            ParamId::from(id),
        ));
    }
    let bytes = BurnpackWriter::new(snapshots).to_bytes();
    let bytes = bytes.map_err(|error| failed(&error))?;
    let mut store = BurnpackStore::from_bytes(Some(bytes)).allow_partial(true);
    model.load(&mut store).map_err(|error| failed(&error))?;
    Ok(model)
}
