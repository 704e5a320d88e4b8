//! Profiles of an engine's answers.

use std::sync::{Arc, Mutex, PoisonError};

use edge_lmm::environment::Environment;
use edge_lmm::profile::report::{FORMAT, Parameters, VERSION};
use edge_lmm::profile::{Measured, ProfileReport, Runs};
use edge_lmm::units;
use pyo3::prelude::*;

use crate::engine::{Engine, Model};
use crate::error::Error;
use crate::request::OwnedRequest;

/// Answers between the starts and the stops of a profiler.
#[derive(Default)]
pub struct Measurements {
    /// The n-th answers after each start.
    runs: Vec<Runs>,
    /// Number of the next answer since the last start.
    next: usize,
}

impl Measurements {
    /// Adds an answer. The same answer after another start is a repeat.
    pub fn add(&mut self, request: &OwnedRequest, measured: Measured) {
        if self.next == self.runs.len() {
            self.runs.push(Runs {
                parameters: parameters(request, self.next + 1),
                ..Runs::default()
            });
        }
        self.runs[self.next].measured.push(measured);
        self.next += 1;
    }
}

fn parameters(request: &OwnedRequest, turn: usize) -> Parameters {
    let media = request.request().media.iter();
    Parameters {
        turn,
        prompt: request.prompt(),
        // Decoded media have no file; their kind and size tell them apart.
        media: media
            .map(|medium| {
                format!(
                    "{} of {}",
                    medium.kind().as_str(),
                    units::bytes(medium.bytes())
                )
            })
            .collect(),
        max_tokens: request.max_tokens(),
        reduce: request.request().options.reductions.to_string(),
        ..Parameters::default()
    }
}

/// Measures the answers of an engine.
#[pyclass(frozen, module = "edge_lmm._native")]
pub struct Profile {
    model: Arc<Model>,
    measurements: Arc<Mutex<Measurements>>,
    environment: Mutex<Environment>,
}

#[pymethods]
impl Profile {
    #[new]
    fn new(engine: &Engine) -> Self {
        let model = Arc::clone(&engine.0);
        let environment = Environment::before(model.engine.device(), Some(&model.record));
        Self {
            model,
            measurements: Arc::default(),
            environment: Mutex::new(environment),
        }
    }

    /// Starts to measure.
    fn start(&self) -> PyResult<()> {
        let profile = self.model.profile.lock();
        let mut profile = profile.unwrap_or_else(PoisonError::into_inner);
        if profile.is_some() {
            return Err(Error::new_err(
                "another profiler measures this engine: stop it first",
            ));
        }
        // Encoder outputs are shared by the sessions of an engine; each run encodes its media.
        self.model.engine.session().forget();
        self.lock().next = 0;
        *profile = Some(Arc::clone(&self.measurements));
        Ok(())
    }

    /// Ends the measurement.
    fn stop(&self) {
        let profile = self.model.profile.lock();
        *profile.unwrap_or_else(PoisonError::into_inner) = None;
        let environment = self.environment.lock();
        environment.unwrap_or_else(PoisonError::into_inner).finish();
    }

    /// The report of `edge-lmm profile` as JSON.
    fn report(&self) -> PyResult<String> {
        let environment = self.environment.lock();
        let environment = environment.unwrap_or_else(PoisonError::into_inner).clone();
        let report = ProfileReport {
            format: FORMAT.to_owned(),
            version: VERSION,
            environment,
            roofline: None,
            energy_source: None,
            load: Vec::new(),
            runs: self
                .lock()
                .runs
                .iter()
                .filter_map(|runs| runs.report(None, None))
                .collect(),
        };
        serde_json::to_string(&report).map_err(|error| Error::new_err(error.to_string()))
    }
}

impl Profile {
    fn lock(&self) -> std::sync::MutexGuard<'_, Measurements> {
        let measurements = self.measurements.lock();
        measurements.unwrap_or_else(PoisonError::into_inner)
    }
}
