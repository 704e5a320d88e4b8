//! The service below all protocols: one queue, and one engine that answers its requests in turn.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use edge_lmm::serve::{Limits, MAX_LINE, Prepared};
use edge_lmm::{Answer, AnySession, EngineError, Event, RequestEstimator};

use super::limits::{Budget, Permits};
#[cfg(feature = "http")]
use super::metrics::Metrics;
use super::queue::{Full, Owner, Place, Queue};
use super::watchdog::Watchdog;

/// Maximum bytes of unfinished requests of all clients together.
pub const REQUEST_BYTES: usize = 2 * MAX_LINE;
/// Requests with decoded media at the same time: the current one and the next.
const DECODED_REQUESTS: usize = 2;

/// The client of one request.
pub trait Client: Send {
    /// Returns `true` if nobody waits for the answer anymore.
    fn is_gone(&self) -> bool;
    /// Receives an event of the request.
    fn event(&mut self, event: &Event<'_>);
    /// Receives the end of the request, and the time that it waited.
    fn done(self: Box<Self>, answer: Result<Answer, EngineError>, waited: Duration);
}

/// A request with decoded media, queued for the engine.
pub struct Job {
    request: Prepared,
    client: Box<dyn Client>,
    place: Place<Job>,
    /// A value that is dropped when the request has been answered, such as permits.
    held: Box<dyn Send>,
    entered: Instant,
}

/// State shared by all protocols. Clones share it.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

struct Shared {
    limits: Limits,
    queue: Queue<Job>,
    requests: Budget,
    decoded: Permits,
    connections: AtomicU64,
    #[cfg(feature = "http")]
    metrics: Metrics,
}

impl Service {
    /// Creates a service whose queue has `places`.
    pub fn new(limits: Limits, places: usize) -> Self {
        Self(Arc::new(Shared {
            limits,
            queue: Queue::new(places),
            requests: Budget::new(REQUEST_BYTES),
            decoded: Permits::new(DECODED_REQUESTS),
            connections: AtomicU64::new(0),
            #[cfg(feature = "http")]
            metrics: Metrics::default(),
        }))
    }

    /// Returns limits and defaults of requests.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Returns the memory of unfinished requests.
    pub fn requests(&self) -> &Budget {
        &self.0.requests
    }

    /// Returns the permits for decoded media.
    pub fn decoded(&self) -> &Permits {
        &self.0.decoded
    }

    /// Returns a number for a new connection.
    pub fn next_connection(&self) -> u64 {
        self.0.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the counters of the service.
    #[cfg(feature = "http")]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Returns the number of waiting requests, and whether one is answered.
    #[cfg(feature = "http")]
    pub fn load(&self) -> (usize, bool) {
        (self.0.queue.waiting(), self.0.queue.is_answering())
    }

    /// Takes a place in the queue for a request that is about to be prepared.
    ///
    /// # Errors
    /// If the queue is full.
    pub fn enter(&self, owner: Owner) -> Result<Entry, Full> {
        let (place, position) = self.0.queue.enter(owner)?;
        Ok(Entry {
            service: self.clone(),
            owner,
            place,
            position,
            entered: Instant::now(),
        })
    }

    /// Answers requests forever.
    pub fn run(&self, answering: &mut Answering) -> ! {
        let mut watchdog = Watchdog::new();
        loop {
            match self.0.queue.next(watchdog.interval()) {
                Some(job) => {
                    let time = self.answer(answering, job, &mut watchdog);
                    self.0.queue.finished(time);
                }
                None => watchdog.notify(),
            }
        }
    }

    /// Answers a request. Returns the time that it took; `None` if its client was gone before.
    fn answer(
        &self,
        answering: &mut Answering,
        job: Job,
        watchdog: &mut Watchdog,
    ) -> Option<Duration> {
        let Job {
            request,
            mut client,
            place,
            held,
            entered,
        } = job;
        drop(place);
        if client.is_gone() {
            return None;
        }
        let waited = entered.elapsed();
        let start = Instant::now();
        let answer = answering.answer(self.limits(), &request, |event| {
            watchdog.notify();
            client.event(&event);
            break_if(client.is_gone())
        });
        drop((request, held));
        let time = start.elapsed();
        #[cfg(feature = "http")]
        self.metrics().observe(&answer, waited);
        client.done(answer, waited);
        Some(time)
    }
}

/// A place in the queue of a request that is being prepared.
pub struct Entry {
    service: Service,
    owner: Owner,
    place: Place<Job>,
    position: usize,
    entered: Instant,
}

impl Entry {
    /// Returns the number of requests that were ahead on entry.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Queues the request. `held` is dropped when it has been answered.
    pub fn submit(self, request: Prepared, client: Box<dyn Client>, held: Box<dyn Send>) {
        let job = Job {
            request,
            client,
            place: self.place,
            held,
            entered: self.entered,
        };
        self.service.0.queue.push(self.owner, job);
    }
}

/// The model and the memory check that answer requests.
pub struct Answering {
    /// The conversations.
    pub session: AnySession,
    /// The memory check.
    pub estimator: Option<RequestEstimator>,
}

impl Answering {
    /// Answers a request; `on_event` cancels it by breaking.
    ///
    /// # Errors
    /// As [`Prepared::answer`].
    pub fn answer(
        &mut self,
        limits: &Limits,
        request: &Prepared,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let estimator = self.estimator.as_ref();
        request.answer(&mut self.session, limits, estimator, on_event)
    }
}

/// Breaks if a condition holds.
pub fn break_if(condition: bool) -> ControlFlow<()> {
    match condition {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
