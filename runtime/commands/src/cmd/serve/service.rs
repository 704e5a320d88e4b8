//! The service below all protocols: one queue, and one engine that answers its requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use edge_lmm::serve::{Limits, MAX_LINE, Prepared};
use edge_lmm::{Answer, EngineError, Event};

use super::limits::{Budget, Permits};
#[cfg(feature = "http")]
use super::metrics::Metrics;
use super::queue::{Full, Owner, Place, Queue};

/// Maximum bytes of unfinished requests of all clients together.
pub const REQUEST_BYTES: usize = 2 * MAX_LINE;
/// Requests with decoded media at the same time: the one that begins and the next.
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
    /// The request.
    pub request: Prepared,
    /// Its client.
    pub client: Box<dyn Client>,
    /// Its place, while it is in the queue.
    place: Option<Place<Job>>,
    /// A value that is dropped when the prompt of the request has been taken in, such as permits.
    pub held: Box<dyn Send>,
    /// Time at which it entered the queue.
    pub entered: Instant,
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
    /// Creates a service whose queue has `places`, and that answers up to `parallel` requests at the
    /// same time.
    pub fn new(limits: Limits, places: usize, parallel: usize) -> Self {
        Self(Arc::new(Shared {
            limits,
            queue: Queue::new(places, parallel),
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

    /// Returns the numbers of requests that wait and that are answered.
    #[cfg(feature = "http")]
    pub fn load(&self) -> (usize, usize) {
        (self.0.queue.waiting(), self.0.queue.answering())
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

    /// Waits for the next request; `None` after `timeout`. [`Self::done`] or [`Self::finished`]
    /// follows for each of them.
    pub fn next(&self, timeout: Duration) -> Option<Job> {
        let mut job = self.0.queue.next(timeout)?;
        job.place = None;
        Some(job)
    }

    /// Gives a client the end of its request, which waited for `waited` and began at `start`.
    pub fn done(
        &self,
        client: Box<dyn Client>,
        answer: Result<Answer, EngineError>,
        waited: Duration,
        start: Instant,
    ) {
        #[cfg(feature = "http")]
        self.metrics().observe(&answer, waited);
        self.finished(Some(start.elapsed()));
        client.done(answer, waited);
    }

    /// Ends a request that took `time`; `None` if it was not answered.
    pub fn finished(&self, time: Option<Duration>) {
        self.0.queue.finished(time);
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

    /// Queues the request. `held` is dropped when its prompt has been taken in.
    pub fn submit(self, request: Prepared, client: Box<dyn Client>, held: Box<dyn Send>) {
        let job = Job {
            request,
            client,
            place: Some(self.place),
            held,
            entered: self.entered,
        };
        self.service.0.queue.push(self.owner, job);
    }
}
