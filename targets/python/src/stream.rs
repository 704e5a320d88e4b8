//! Answers that are computed by a thread and read piece by piece.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_lmm::profile::Measured;
use edge_lmm::profile::report::TokenCounts;
use edge_lmm::report::AnswerReport;
use edge_lmm::{
    Answer, AnySession, EngineError, Event, Recording, Request, RequestEstimator, Speculation,
    Timing,
};
use pyo3::prelude::*;

use crate::engine::Model;
use crate::error::{Error, engine_error};
use crate::request::OwnedRequest;

/// Time between two checks for Ctrl-C.
const SIGNALS: Duration = Duration::from_millis(50);

/// What the thread of an answer needs.
pub struct Job {
    pub model: Arc<Model>,
    pub session: Arc<Mutex<AnySession>>,
    pub request: OwnedRequest,
}

enum Piece {
    Text(String),
    /// The report as JSON.
    End(Result<String, EngineError>),
}

/// An answer: an iterator over its text. The report is known at its end.
#[pyclass(frozen, module = "edge_lmm._native")]
pub struct Stream {
    pieces: Mutex<Receiver<Piece>>,
    canceled: Arc<AtomicBool>,
    ended: AtomicBool,
    report: Mutex<Option<String>>,
}

impl Stream {
    /// Starts the thread, which waits until the session has ended an earlier answer. It stops when
    /// `canceled` is set.
    pub fn start(job: Job, canceled: Arc<AtomicBool>) -> Self {
        let (sender, pieces) = channel();
        let stop = Arc::clone(&canceled);
        std::thread::spawn(move || {
            let ended = job.run(&sender, &stop);
            // Without a reader, nobody wants the report.
            let _ = sender.send(Piece::End(ended));
        });
        Self {
            pieces: Mutex::new(pieces),
            canceled,
            ended: AtomicBool::new(false),
            report: Mutex::new(None),
        }
    }

    /// Waits for the next piece without the GIL; `None` if there is none within the time.
    fn wait(&self, py: Python<'_>) -> PyResult<Option<Piece>> {
        let received = py.detach(|| {
            let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.recv_timeout(SIGNALS)
        });
        match received {
            Ok(piece) => Ok(Some(piece)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                self.ended.store(true, Ordering::Relaxed);
                Err(Error::new_err(
                    "the engine failed while it computed the answer; its message is on standard error",
                ))
            }
        }
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn end(&self, ended: Result<String, EngineError>) -> PyResult<()> {
        self.ended.store(true, Ordering::Relaxed);
        let report = ended.map_err(engine_error)?;
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        Ok(())
    }
}

#[pymethods]
impl Stream {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        while !self.ended() {
            match self.wait(py)? {
                Some(Piece::Text(text)) => return Ok(Some(text)),
                Some(Piece::End(ended)) => self.end(ended)?,
                None => {}
            }
            if let Err(interrupt) = py.check_signals() {
                self.close(py);
                return Err(interrupt);
            }
        }
        Ok(None)
    }

    /// Cancels the answer and waits until the session is free.
    fn close(&self, py: Python<'_>) {
        self.canceled.store(true, Ordering::Relaxed);
        while !self.ended() {
            if let Ok(Some(Piece::End(ended))) = self.wait(py) {
                // The reader gave up; nothing that failed since then matters.
                let _ = self.end(ended);
            }
        }
    }

    /// The report of the whole answer as JSON; None before the end.
    fn report(&self) -> Option<String> {
        let report = self.report.lock();
        report.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.canceled.store(true, Ordering::Relaxed);
    }
}

impl Job {
    fn run(&self, sender: &Sender<Piece>, canceled: &AtomicBool) -> Result<String, EngineError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = self.model.profile.lock();
        let profile = profile.unwrap_or_else(PoisonError::into_inner).clone();
        let Some(profile) = profile else {
            let (answer, _) =
                self.answer(&mut session, self.request.request(), sender, canceled)?;
            return Ok(report(&answer, &answer.timing));
        };
        let mut recording = Recording::detailed(session.device());
        let origin = recording.origin().unwrap_or_else(Instant::now);
        let request = Request {
            timing: false,
            // The measurements are those of single steps.
            speculation: Speculation::Off,
            ..self.request.request()
        };
        let answered = recording.run(|| self.answer(&mut session, request, sender, canceled));
        let outside = origin.elapsed();
        let timing = recording.finish();
        let (answer, tokens) = answered?;
        let json = report(&answer, &timing);
        let measured = Measured {
            origin,
            outside,
            timing,
            answer,
            tokens,
        };
        let mut measurements = profile.lock().unwrap_or_else(PoisonError::into_inner);
        measurements.add(&self.request, measured);
        Ok(json)
    }

    fn answer(
        &self,
        session: &mut AnySession,
        request: Request<'_>,
        sender: &Sender<Piece>,
        canceled: &AtomicBool,
    ) -> Result<(Answer, TokenCounts), EngineError> {
        let estimator = RequestEstimator::new(self.model.engine.clone());
        let mut tokens = TokenCounts::default();
        let mut failed = None;
        let answer = session.answer(&request, |event| {
            match event {
                Event::Prepared {
                    prompt_tokens,
                    media,
                } => {
                    tokens = TokenCounts::prepared(&request, media, None);
                    let estimate = estimator.estimate(&request, media, prompt_tokens);
                    if !self.model.ignore_memory {
                        failed = estimator.check(&estimate).err();
                    }
                }
                Event::Text(text) => {
                    // A reader that is gone has set `canceled`.
                    let _ = sender.send(Piece::Text(text.to_owned()));
                }
                _ => {}
            }
            match failed.is_some() || canceled.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let answer = answer?;
        tokens.answered(&answer);
        Ok((answer, tokens))
    }
}

fn report(answer: &Answer, timing: &Timing) -> String {
    let report = serde_json::to_value(AnswerReport::new(answer, timing));
    report.unwrap_or_default().to_string()
}
