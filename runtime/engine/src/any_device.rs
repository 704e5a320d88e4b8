//! Engines and sessions whose device is chosen at run time.

use std::ops::ControlFlow;
use std::path::Path;

use edge_lmm_models::media::MediaInput;
#[cfg(feature = "experiments")]
use edge_lmm_models::prompt::Message;
use edge_lmm_models::prompt::ToolSyntax;
use edge_lmm_ops::{Format, MemoryFailure};
use edge_lmm_record::output::Output;

use crate::Cpu;
use crate::any_generation::AnyGeneration;
use crate::cost::{CostKey, CostModel};
use crate::device::{Device, free_memory};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::estimate::ResourceEstimate;
#[cfg(feature = "experiments")]
use crate::experiment::{Values, parallel, speculation};
use crate::memory::{Fit, MemoryCheck};
use crate::record::Record;
use crate::request::{Answer, Event, Request};
use crate::session::{Session, SnapshotError};
use crate::store::Store;

#[cfg(feature = "cuda")]
use crate::device::cuda_device;

impl Device {
    /// Loads the model of a record (stage `load`).
    ///
    /// # Errors
    /// If the device cannot be used or the record does not fit its model.
    pub fn load(self, record: &Record) -> Result<AnyEngine, EngineError> {
        self.check()?;
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Engine::load(record, cuda_device(index)).map(AnyEngine::Cuda),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Engine::load(record, Default::default()).map(AnyEngine::Vulkan),
            _ => Engine::load(record, Default::default()).map(AnyEngine::Cpu),
        }
    }

    /// Loads a model as [`load`](Self::load) does, but checks first that it fits into the memory of
    /// the device. `locked` requires that all weights stay in memory.
    ///
    /// # Errors
    /// [`EngineError::DoesNotFit`], and as there.
    pub fn load_checked(
        self,
        record: &Record,
        locked: bool,
    ) -> Result<(AnyEngine, Fit), EngineError> {
        self.check()?;
        let check = match (MemoryCheck::new(self), locked) {
            (check, true) => check.locked(),
            (check, false) => check,
        };
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Engine::load_checked(record, cuda_device(index), &check)
                .map(|(engine, fit)| (AnyEngine::Cuda(engine), fit)),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Engine::load_checked(record, Default::default(), &check)
                .map(|(engine, fit)| (AnyEngine::Vulkan(engine), fit)),
            _ => Engine::load_checked(record, Default::default(), &check)
                .map(|(engine, fit)| (AnyEngine::Cpu(engine), fit)),
        }
    }
}

/// A loaded model on one of the devices that this program was built for. Clones share the weights.
#[derive(Clone)]
#[non_exhaustive]
pub enum AnyEngine {
    /// On the processor.
    Cpu(Engine<Cpu>),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Engine<crate::Cuda>),
    /// On a Vulkan device.
    #[cfg(feature = "vulkan")]
    Vulkan(Engine<crate::Vulkan>),
}

/// The same expression for the engine of any device.
macro_rules! each_engine {
    ($self:expr, $engine:ident => $do:expr) => {
        match $self {
            AnyEngine::Cpu($engine) => $do,
            #[cfg(feature = "cuda")]
            AnyEngine::Cuda($engine) => $do,
            #[cfg(feature = "vulkan")]
            AnyEngine::Vulkan($engine) => $do,
        }
    };
}

impl AnyEngine {
    /// See [`Engine::estimate`].
    pub fn estimate(
        &self,
        request: &Request<'_>,
        media: &[MediaInput],
        prompt_tokens: usize,
    ) -> ResourceEstimate {
        each_engine!(self, engine => engine.estimate(request, media, prompt_tokens))
    }

    /// See [`Engine::context_length`].
    pub fn context_length(&self) -> usize {
        each_engine!(self, engine => engine.context_length())
    }

    /// Returns the format of the vision encoder's weights.
    pub(crate) fn vision_format(&self) -> Option<Format> {
        each_engine!(self, engine => engine.vision_format())
    }

    /// See [`Engine::tool_syntax`].
    ///
    /// # Errors
    /// As there.
    pub fn tool_syntax(&self) -> Result<ToolSyntax, EngineError> {
        each_engine!(self, engine => engine.tool_syntax())
    }

    /// See [`Engine::measure_costs`].
    ///
    /// # Errors
    /// As there.
    pub fn measure_costs(&self) -> Result<CostModel, EngineError> {
        each_engine!(self, engine => engine.measure_costs())
    }

    /// See [`Engine::use_costs`].
    pub fn use_costs(&self, costs: CostModel) {
        each_engine!(self, engine => engine.use_costs(costs));
    }

    /// See [`Engine::cost_key`].
    pub fn cost_key(&self) -> CostKey {
        each_engine!(self, engine => engine.cost_key())
    }

    /// See [`Engine::use_store`].
    pub fn use_store(&self, store: Store) {
        each_engine!(self, engine => engine.use_store(store));
    }

    /// Measures speculation, see [`speculation::run`].
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "experiments")]
    pub fn measure_speculation(
        &self,
        options: speculation::Options,
        progress: impl FnMut(&str),
    ) -> Result<speculation::Report, EngineError> {
        each_engine!(self, engine => speculation::run(engine, options, progress))
    }

    /// Measures answers that are decoded together, see [`parallel::measure`].
    #[cfg(feature = "experiments")]
    pub(crate) fn measure_parallel(
        &self,
        messages: &[[Message; 1]],
        max_tokens: usize,
        together_first: bool,
    ) -> Result<Values, EngineError> {
        each_engine!(self, engine => {
            parallel::measure(engine, messages, max_tokens, together_first)
        })
    }

    /// See [`Engine::use_draft`].
    ///
    /// # Errors
    /// As there, and if the models are on different devices.
    pub fn use_draft(&self, draft: Self) -> Result<(), EngineError> {
        match (self, draft) {
            (Self::Cpu(engine), Self::Cpu(draft)) => engine.use_draft(draft),
            #[cfg(feature = "cuda")]
            (Self::Cuda(engine), Self::Cuda(draft)) => engine.use_draft(draft),
            #[cfg(feature = "vulkan")]
            (Self::Vulkan(engine), Self::Vulkan(draft)) => engine.use_draft(draft),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => Err(EngineError::Draft("it is on another device")),
        }
    }

    /// Returns the device of the model.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => Device::Cuda(engine.device().index),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_) => Device::Vulkan,
        }
    }

    /// See [`Engine::session`].
    pub fn session(&self) -> AnySession {
        match self {
            Self::Cpu(engine) => AnySession::Cpu(engine.session()),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => AnySession::Cuda(engine.session()),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(engine) => AnySession::Vulkan(engine.session()),
        }
    }
}

/// A conversation with a model on one of the devices that this program was built for.
#[non_exhaustive]
pub enum AnySession {
    /// On the processor.
    Cpu(Session<Cpu>),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Session<crate::Cuda>),
    /// On a Vulkan device.
    #[cfg(feature = "vulkan")]
    Vulkan(Session<crate::Vulkan>),
}

/// The same expression for the session of any device.
macro_rules! each {
    ($self:expr, $session:ident => $do:expr) => {
        match $self {
            AnySession::Cpu($session) => $do,
            #[cfg(feature = "cuda")]
            AnySession::Cuda($session) => $do,
            #[cfg(feature = "vulkan")]
            AnySession::Vulkan($session) => $do,
        }
    };
}

impl AnySession {
    /// See [`Session::answer`].
    ///
    /// # Errors
    /// As there.
    pub fn answer(
        &mut self,
        request: &Request<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let answer = each!(self, session => session.answer(request, on_event));
        answer.map_err(|error| self.after(error))
    }

    /// See [`Session::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<AnyGeneration, EngineError> {
        let begun = match self {
            Self::Cpu(session) => {
                let begun = session.begin(request, Vec::new(), on_event);
                begun.map(AnyGeneration::Cpu)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(session) => {
                let begun = session.begin(request, Vec::new(), on_event);
                begun.map(AnyGeneration::Cuda)
            }
            #[cfg(feature = "vulkan")]
            Self::Vulkan(session) => {
                let begun = session.begin(request, Vec::new(), on_event);
                begun.map(AnyGeneration::Vulkan)
            }
        };
        begun.map_err(|error| self.after(error))
    }

    fn after(&mut self, error: EngineError) -> EngineError {
        let device = self.device();
        after_failure(error, device, || self.forget())
    }

    /// See [`Session::keep_conversations`].
    pub fn keep_conversations(&mut self, count: usize, bytes: usize) {
        each!(self, session => session.keep_conversations(count, bytes));
    }

    /// See [`Session::forget_others`].
    pub fn forget_others(&mut self) -> bool {
        each!(self, session => session.forget_others())
    }

    /// See [`Session::can_be_saved`].
    pub fn can_be_saved(&self) -> bool {
        each!(self, session => session.can_be_saved())
    }

    /// See [`Session::save_snapshot`].
    ///
    /// # Errors
    /// As there.
    pub fn save_snapshot(&self, output: Output, tokens: usize) -> Result<(), SnapshotError> {
        each!(self, session => session.save_snapshot(output, tokens))
    }

    /// See [`Session::load_snapshot`].
    ///
    /// # Errors
    /// As there.
    pub fn load_snapshot(&mut self, path: &Path) -> Result<usize, EngineError> {
        each!(self, session => session.load_snapshot(path))
    }

    /// See [`Session::forget`].
    pub fn forget(&mut self) {
        each!(self, session => session.forget());
    }

    /// Returns the device of the model.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(session) => Device::Cuda(session.device().index),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_) => Device::Vulkan,
        }
    }
}

/// Cleans up after an error if it is a failure of the device: encoder outputs may be incomplete, so
/// that `forget` forgets all results, and the device knows how much memory is free.
pub(crate) fn after_failure(
    error: EngineError,
    device: Device,
    forget: impl FnOnce(),
) -> EngineError {
    match error {
        EngineError::Memory(failure) => {
            forget();
            let free = free_memory(device);
            EngineError::Memory(MemoryFailure { free, ..failure })
        }
        EngineError::Compute(_) => {
            forget();
            error
        }
        error => error,
    }
}
