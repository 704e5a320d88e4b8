//! A loaded record that scores every next token of a window.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use edge_lmm::Cpu;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::{DecoderState, LanguageModel, OutputRows, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_record::{Record, RecordError};

use super::run::CompareError;
use super::size::Size;

/// A record with its model, and the time that its parts have taken.
pub struct Scorer {
    record: Record,
    model: Box<dyn BuiltModel<Cpu>>,
    size: Size,
    prefill: Duration,
    head: Duration,
}

impl Scorer {
    /// Opens a record and builds its model.
    ///
    /// # Errors
    /// If the record cannot be read or does not fit its model.
    pub fn open(path: &Path) -> Result<Self, CompareError> {
        let record = Record::open(path)?;
        let (mut model, specs) =
            record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        let loaded = model.load(&mut record.store());
        loaded.map_err(|error| RecordError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            size: Size::of(&record, &specs),
            record,
            model,
            prefill: Duration::ZERO,
            head: Duration::ZERO,
        })
    }

    /// Returns the record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the size of the record.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Returns the stages with the time that each has taken.
    pub fn times(&self) -> [(&'static str, Duration); 2] {
        [("prefill", self.prefill), ("head", self.head)]
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.language().vocabulary()
    }

    /// Returns the largest number of tokens of a window.
    pub fn context_length(&self) -> usize {
        self.language().context_length()
    }

    /// Returns `true` if the model continues texts: if it is decoder-only.
    pub(super) fn continues_texts(&self) -> bool {
        self.language().decoder_layers().is_some()
    }

    fn language(&self) -> &dyn LanguageModel<Cpu> {
        self.model.language()
    }

    /// Returns the hidden states that score the tokens after those at `rows` of a window:
    /// `[rows.len(), hidden_size]`. The ids must be in the vocabulary.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn hidden(
        &mut self,
        ids: &[u32],
        rows: Range<usize>,
    ) -> Result<Tensor<Cpu, 2>, CompareError> {
        let start = Instant::now();
        let language = self.model.language();
        let positions: Vec<Position> = (0..ids.len() as u32).map(|at| [at; 3]).collect();
        let mut state = DecoderState::<Cpu>::new(language, ids.len(), &Default::default())
            .map_err(edge_lmm_models::ModelError::from)?;
        let mut go_on = |_| ControlFlow::Continue(());
        let input = StepInput {
            output: OutputRows::All,
            ..StepInput::new(language.embed(ids), &positions)
        };
        let hidden = language.prefill(input, &mut state, &mut Monitor::new(&mut go_on))?;
        let hidden = hidden.narrow(0, rows.start, rows.len());
        self.prefill += start.elapsed();
        Ok(hidden)
    }

    /// Returns the scores of the next token for some rows of hidden states, row by row.
    pub(super) fn scores(&mut self, hidden: &Tensor<Cpu, 2>, rows: Range<usize>) -> Vec<f32> {
        let start = Instant::now();
        let hidden = hidden.clone().narrow(0, rows.start, rows.len());
        let scores = self.language().logits(hidden).into_data();
        let scores = scores.into_vec().expect("scores are f32");
        self.head += start.elapsed();
        scores
    }
}
