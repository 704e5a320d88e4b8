//! The model with weights in half precision, which runs the samples.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Tensor;
use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::{Cpu, Engine, EngineError, Media, Request, one_line, user_message};
use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::{DecoderState, OutputRows, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_ops::Format;
use edge_lmm_record::Record;

use super::CalibrationError;
use super::samples::Samples;
use crate::plan::{ConvertError, Options, Plan};
use crate::source::Checkpoint;
use crate::write::write_record;

/// One in so many tokens of text passes the output head, which is large and sees what the last norm
/// gives.
const HEAD_STRIDE: usize = 16;

/// The model and its samples. Its weights are in a temporary file and are mapped, so that the system
/// keeps only those in memory that are in use.
pub(super) struct FloatModel {
    record: Record,
    model: Box<dyn BuiltModel<Cpu>>,
    windows: Vec<Vec<u32>>,
    manifests: Vec<Manifest>,
    /// Removed on drop, after the mapping.
    _file: Removed,
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // On Unix it has been removed already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl FloatModel {
    /// Writes the weights to `path` and maps them.
    ///
    /// # Errors
    /// If the file cannot be written, or the samples are not tokens of the model.
    pub fn new(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        samples: Samples,
        path: &Path,
    ) -> Result<Self, ConvertError> {
        let options = Options {
            text: Format::F16,
            vision: Format::F16,
            audio: Format::F16,
            head: None,
        };
        let plan = plan.in_formats(checkpoint, &options)?;
        let file = Removed(path.to_owned());
        write_record(&plan, checkpoint.clone(), path, |_, _| {})?;
        let failed = |reason: String| CalibrationError::Model { reason };
        let record = Record::open(path).map_err(|error| failed(one_line(&error)))?;
        if cfg!(unix) {
            // The mapping keeps the contents, and nothing is left behind whatever happens.
            let _ = std::fs::remove_file(path);
        }
        let (mut model, _) = record
            .skeleton::<Cpu>(&Registry::default(), &Default::default())
            .map_err(|error| failed(one_line(&error)))?;
        let loaded = model.load(&mut record.store());
        loaded.map_err(|error| failed(error.to_string()))?;
        let language = model.language();
        let windows = samples.windows(record.tokenizer(), language.context_length())?;
        let vocabulary = language.vocabulary();
        if let Some(&id) = windows
            .iter()
            .flatten()
            .find(|&&id| id as usize >= vocabulary)
        {
            return Err(failed(format!("token {id} of the text has no embedding")).into());
        }
        Ok(Self {
            windows,
            manifests: samples.manifests,
            record,
            model,
            _file: file,
        })
    }

    /// Runs all samples.
    ///
    /// # Errors
    /// If a medium cannot be read, or a sample does not fit the model.
    pub fn run(&self) -> Result<(), CalibrationError> {
        for ids in &self.windows {
            self.run_window(ids)?;
        }
        if !self.manifests.is_empty() {
            self.run_questions()?;
        }
        Ok(())
    }

    fn run_window(&self, ids: &[u32]) -> Result<(), CalibrationError> {
        let failed = |error: &(dyn std::error::Error + 'static)| CalibrationError::Model {
            reason: one_line(error),
        };
        let language = self.model.language();
        let positions: Vec<Position> = (0..ids.len() as u32).map(|at| [at; 3]).collect();
        let mut state = DecoderState::<Cpu>::new(language, ids.len(), &Default::default())
            .map_err(|error| failed(&error))?;
        let mut go_on = |_| ControlFlow::Continue(());
        let input = StepInput {
            output: OutputRows::All,
            ..StepInput::new(language.embed(ids), &positions)
        };
        let hidden = language
            .prefill(input, &mut state, &mut Monitor::new(&mut go_on))
            .map_err(|error| failed(&error))?;
        let [rows, _] = hidden.dims();
        let some = (0..rows).step_by(HEAD_STRIDE);
        let some = some.map(|row| hidden.clone().narrow(0, row, 1)).collect();
        language.logits(Tensor::cat(some, 0));
        Ok(())
    }

    fn run_questions(&self) -> Result<(), CalibrationError> {
        let engine = Engine::<Cpu>::load(&self.record, Default::default());
        let engine = engine.map_err(|error| CalibrationError::Model {
            reason: one_line(&error),
        })?;
        for manifest in &self.manifests {
            let mut unsupported = 0;
            for question in &manifest.questions {
                match ask(&engine, manifest, question) {
                    Err(EngineError::Model(ModelError::Unsupported { .. })) => unsupported += 1,
                    other => other.map_err(|error| CalibrationError::Samples {
                        reason: format!("question {}: {}", question.id, one_line(&error)),
                    })?,
                }
            }
            if unsupported > 0 {
                log::info!(
                    "{unsupported} questions are about media that the model does not support"
                );
            }
        }
        Ok(())
    }
}

/// Processes a question with its medium, and then the answer.
fn ask(engine: &Engine<Cpu>, manifest: &Manifest, question: &Question) -> Result<(), EngineError> {
    let media: Vec<Media> = (manifest.media_path(question).into_iter())
        .map(Media::open)
        .collect::<Result<_, _>>()?;
    let messages = [user_message(&media, &question.question)];
    let request = Request {
        media: &media,
        ..Request::new(&messages)
    };
    let mut session = engine.session();
    // Cached encoder outputs would hide the encoder from the statistics.
    session.forget();
    session.prefill(&request, |_| ControlFlow::Continue(()))?;
    let answer = engine.text().encode_text(&question.answer)?;
    if !answer.is_empty() {
        session.step(&answer, OutputRows::All)?;
    }
    Ok(())
}
