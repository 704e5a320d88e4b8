//! Loaded models and conversations with them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use edge_lmm::{AnyEngine, AnySession, Device, Devices, EngineError, Record};
use pyo3::prelude::*;

use crate::error::{InputError, engine_error};
use crate::profile::Measurements;
use crate::request::{OwnedRequest, Part, Settings};
use crate::stream::{Job, Stream};

/// A loaded model, and what its sessions share.
pub struct Model {
    pub engine: AnyEngine,
    pub record: Record,
    /// Requests are answered even if memory is too small for them.
    pub ignore_memory: bool,
    /// Receives the measurements of answers while a profiler runs.
    pub profile: Mutex<Option<Arc<Mutex<Measurements>>>>,
}

/// A loaded model.
#[pyclass(frozen, module = "edge_lmm._native")]
pub struct Engine(pub Arc<Model>);

#[pymethods]
impl Engine {
    /// Opens a record and loads its model on the first usable device of a list such as "cuda,cpu".
    #[new]
    #[pyo3(signature = (record, device="cpu", ignore_memory=false))]
    fn new(py: Python<'_>, record: PathBuf, device: &str, ignore_memory: bool) -> PyResult<Self> {
        let devices: Devices = device.parse().map_err(|reason| {
            InputError::new_err(format!("unknown device {device:?}: {reason}"))
        })?;
        let loaded = py.detach(|| load(record, &devices, ignore_memory));
        loaded.map(Arc::new).map(Self).map_err(engine_error)
    }

    /// The device, as the constructor takes it.
    #[getter]
    fn device(&self) -> String {
        self.0.engine.device().to_string()
    }

    /// Starts a conversation.
    fn session(&self) -> Session {
        Session {
            model: Arc::clone(&self.0),
            session: Arc::new(Mutex::new(self.0.engine.session())),
            canceled: Mutex::default(),
        }
    }
}

fn load(path: PathBuf, devices: &Devices, ignore_memory: bool) -> Result<Model, EngineError> {
    let device: Device = devices.choose()?;
    let record = Record::open_unverified(path)?;
    let engine = match ignore_memory {
        true => device.load(&record)?,
        false => device.load_checked(&record, false)?.0,
    };
    record.verify_bundle()?;
    Ok(Model {
        engine,
        record,
        ignore_memory,
        profile: Mutex::new(None),
    })
}

/// A conversation; its state is reused as far as a request continues it.
#[pyclass(frozen, module = "edge_lmm._native")]
pub struct Session {
    model: Arc<Model>,
    session: Arc<Mutex<AnySession>>,
    /// Cancels the latest answer.
    canceled: Mutex<Arc<AtomicBool>>,
}

#[pymethods]
impl Session {
    /// Starts an answer to messages, each of a role and its parts, which are texts and media. An
    /// earlier answer that is not complete is canceled.
    fn start(
        &self,
        messages: Vec<(String, Vec<Part<'_>>)>,
        settings: Settings,
    ) -> PyResult<Stream> {
        let request = OwnedRequest::new(messages, settings, self.model.engine.device())?;
        let canceled = Arc::new(AtomicBool::new(false));
        let latest = self.canceled.lock();
        let mut latest = latest.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *latest, Arc::clone(&canceled)).store(true, Ordering::Relaxed);
        let job = Job {
            model: Arc::clone(&self.model),
            session: Arc::clone(&self.session),
            request,
        };
        Ok(Stream::start(job, canceled))
    }
}
