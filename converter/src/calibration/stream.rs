//! A sample on its way through the model.
//!
//! A stream runs on a thread of its own, which stops at every use of a packed weight until the
//! weight is supplied. So all samples can pass through one weight before any of them goes on to the
//! next one, whatever the model is made of.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use edge_lmm_kernels::pool::{ThreadPool, scoped};
use edge_lmm_ops::observe::{self, Supplied, Use};

use super::CalibrationError;

/// Stack of a thread in bytes, as that of a main thread.
const STACK: usize = 8 << 20;

/// The weight that a stream needs to go on.
pub(super) enum Need {
    /// A weight, to multiply it with inputs: `[tokens, width]`.
    Product { name: String, inputs: Vec<f32> },
    /// Rows of a weight.
    Rows { name: String, ids: Vec<u32> },
}

/// A sample and its thread.
pub(super) struct Stream {
    /// `None` once the stream is to end.
    supply: Option<Sender<Supplied>>,
    needs: Receiver<Need>,
    thread: Option<JoinHandle<Result<(), CalibrationError>>>,
}

/// Panic of a stream whose results are not wanted any more.
struct Abandoned;

impl Stream {
    /// Starts a thread that runs `sample` with `pool`. It comes to its first need at once.
    ///
    /// # Errors
    /// If the system refuses the thread.
    pub fn start(
        pool: Arc<ThreadPool>,
        sample: impl FnOnce() -> Result<(), CalibrationError> + Send + 'static,
    ) -> Result<Self, CalibrationError> {
        let (supply, supplied) = channel();
        let (tell, needs) = channel();
        let work = move || {
            let _supplier = observe::supply(move |name, usage| ask(&tell, &supplied, name, usage));
            scoped(pool, sample)
        };
        let thread = std::thread::Builder::new()
            .name("calibration".to_owned())
            .stack_size(STACK)
            .spawn(work)
            .map_err(|error| CalibrationError::Model {
                reason: format!("no thread for a sample: {error}"),
            })?;
        Ok(Self {
            supply: Some(supply),
            needs,
            thread: Some(thread),
        })
    }

    /// Lets the stream go on with what it needed last.
    pub fn supply(&self, supplied: Supplied) {
        if let Some(supply) = &self.supply {
            // A thread that has ended tells so in `next`.
            let _ = supply.send(supplied);
        }
    }

    /// Waits until the stream needs a weight; `None` at its end.
    ///
    /// # Errors
    /// The error of the sample.
    pub fn next(&mut self) -> Result<Option<Need>, CalibrationError> {
        if let Ok(need) = self.needs.recv() {
            return Ok(Some(need));
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome.map(|()| None),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(None),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.supply = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ask(tell: &Sender<Need>, supplied: &Receiver<Supplied>, name: &str, usage: Use<'_>) -> Supplied {
    let name = name.to_owned();
    let need = match usage {
        Use::Product(inputs) => Need::Product {
            name,
            inputs: inputs.values.to_vec(),
        },
        Use::Rows(ids) => Need::Rows {
            name,
            ids: ids.to_vec(),
        },
    };
    let told = tell.send(need).ok();
    match told.and_then(|()| supplied.recv().ok()) {
        Some(supplied) => supplied,
        None => std::panic::resume_unwind(Box::new(Abandoned)),
    }
}
