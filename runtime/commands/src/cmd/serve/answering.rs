//! The requests that are answered at the same time.
//!
//! The answers of all running requests are decoded together: a step computes the next token of each
//! of them. While a request begins (its media are encoded and its prompt is taken in), it and the
//! steps of the others take turns of equal time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use edge_lmm::serve::{Limits, Prepared, Running};
use edge_lmm::{Answer, AnySession, EngineError, Event, RequestEstimator, timing};

use super::service::{Client, Job, Service};
use super::watchdog::Watchdog;

/// The model that answers requests, up to a number at the same time.
pub struct Answering {
    session: AnySession,
    estimator: Option<RequestEstimator>,
    /// Maximum number of requests.
    most: usize,
    running: Vec<Active>,
    /// A request that needs memory of the running ones, and the number of these when it was tried.
    waiting: Option<(Job, usize)>,
}

/// A request that is being answered.
struct Active {
    answer: Running,
    client: Box<dyn Client>,
    /// Time in the queue.
    waited: Duration,
    start: Instant,
}

impl Answering {
    /// Creates a state without requests. An `estimator` rejects those that do not fit into memory.
    pub fn new(session: AnySession, estimator: Option<RequestEstimator>, most: usize) -> Self {
        Self {
            session,
            estimator,
            most,
            running: Vec::new(),
            waiting: None,
        }
    }

    /// Answers a single request; `on_event` cancels it by breaking.
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

    /// Answers the requests of a service forever.
    pub fn run(mut self, service: &Service) -> ! {
        let mut watchdog = Watchdog::new();
        loop {
            if let Some(job) = self.next(service, watchdog.interval()) {
                self.begin(job, service, &mut watchdog);
            }
            watchdog.notify();
            step(&mut self.running, service);
        }
    }

    /// Returns a request that can begin: the one that waits for memory once a running one has ended,
    /// or the next one of the queue. If nothing is running, waits up to `patience` for it.
    fn next(&mut self, service: &Service, patience: Duration) -> Option<Job> {
        if let Some((_, before)) = &self.waiting {
            let has_ended = self.running.len() < *before;
            return self.waiting.take_if(|_| has_ended).map(|(job, _)| job);
        }
        match self.running.len() {
            0 => service.next(patience),
            running if running < self.most => service.next(Duration::ZERO),
            _ => None,
        }
    }

    /// Begins a request, while the answers of the others continue.
    fn begin(&mut self, mut job: Job, service: &Service, watchdog: &mut Watchdog) {
        if job.client.is_gone() {
            return service.finished(None);
        }
        let (waited, start) = (job.entered.elapsed(), Instant::now());
        let Self {
            session,
            estimator,
            running,
            ..
        } = self;
        let others = running.len();
        let reserved = running.iter().map(|active| active.answer.reserved_bytes());
        let (reserved, estimator) = (reserved.sum(), estimator.as_ref());
        let (request, client) = (&job.request, &mut job.client);
        let mut turns = Turns::new();
        let begun = request.begin(session, service.limits(), estimator, reserved, |event| {
            watchdog.notify();
            client.event(&event);
            if !running.is_empty() {
                turns.give(|| step(running, service));
            }
            break_if(client.is_gone())
        });
        match begun {
            Ok(answer) => self.running.push(Active {
                answer,
                client: job.client,
                waited,
                start,
            }),
            Err(EngineError::DoesNotFit(_)) if others > 0 => self.waiting = Some((job, others)),
            Err(error) => {
                drop((job.request, job.held));
                service.done(job.client, Err(error), waited, start);
            }
        }
    }
}

/// Computes the next token of every answer, and ends those that are complete, canceled or failed.
fn step(running: &mut Vec<Active>, service: &Service) {
    let answers = running.iter_mut().map(|active| &mut active.answer);
    let tokens = Running::next_together(answers);
    for (mut active, token) in std::mem::take(running).into_iter().zip(tokens) {
        match token {
            Some(Ok(token)) => {
                let Active { answer, client, .. } = &mut active;
                let reported = answer.report(&token, &mut |event| {
                    client.event(&event);
                    break_if(client.is_gone())
                });
                match reported.is_break() || answer.has_ended() {
                    true => active.end(None, service),
                    false => running.push(active),
                }
            }
            Some(Err(error)) => active.end(Some(error), service),
            None => active.end(None, service),
        }
    }
}

impl Active {
    fn end(self, error: Option<EngineError>, service: &Service) {
        let Self {
            answer,
            mut client,
            waited,
            start,
        } = self;
        let answer = match error {
            Some(error) => Err(answer.fail(error)),
            None => answer.finish(|event| {
                client.event(&event);
                ControlFlow::Continue(())
            }),
        };
        service.done(client, answer, waited, start);
    }
}

/// Divides the time between a request that begins and the steps of the others.
struct Turns {
    /// End of the last step, and its duration.
    since: Instant,
    step: Duration,
}

impl Turns {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            step: Duration::ZERO,
        }
    }

    /// Runs `step`, which the recording of the other request does not measure, if the time since the
    /// last one is at least as long as that one took.
    fn give(&mut self, step: impl FnOnce()) {
        if self.since.elapsed() >= self.step {
            let start = Instant::now();
            timing::apart(step);
            self.step = start.elapsed();
            self.since = Instant::now();
        }
    }
}

/// Breaks if a condition holds.
pub fn break_if(condition: bool) -> ControlFlow<()> {
    match condition {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
