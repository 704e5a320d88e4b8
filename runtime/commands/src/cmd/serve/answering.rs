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
            self.turn(service, watchdog.interval(), &mut watchdog);
        }
    }

    /// Begins a request if one can begin, and computes the next token of every answer. Waits for a
    /// request as [`Self::next`] does.
    fn turn(&mut self, service: &Service, patience: Duration, watchdog: &mut Watchdog) {
        if let Some(job) = self.next(service, patience) {
            self.begin(job, service, watchdog);
        }
        watchdog.notify();
        step(&mut self.running, service);
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use edge_lmm::health::Memory;
    use edge_lmm::media::FrameSelection;
    use edge_lmm::serve::Question;
    use edge_lmm::{AnyEngine, Device, Record, Request, demo, one_line, user_message};

    use super::super::queue::Owner;
    use super::*;

    const PROMPT: &str = "how many shapes are there?";

    /// An event that a client receives.
    #[derive(Debug, PartialEq)]
    enum Received {
        Token,
        /// The number of tokens of the answer, or the error.
        End(Result<usize, String>),
    }

    /// A client that notes what it receives, with its number.
    struct Note {
        number: usize,
        all: Arc<Mutex<Vec<(usize, Received)>>>,
    }

    impl Note {
        fn add(&self, received: Received) {
            let mut all = self.all.lock().expect("no client panics with the lock");
            all.push((self.number, received));
        }
    }

    impl Client for Note {
        fn is_gone(&self) -> bool {
            false
        }

        fn event(&mut self, event: &Event<'_>) {
            if let Event::Progress {
                stage: "decode", ..
            } = event
            {
                self.add(Received::Token);
            }
        }

        fn done(self: Box<Self>, answer: Result<Answer, EngineError>, _: Duration) {
            let tokens = answer.map(|answer| answer.tokens.len());
            self.add(Received::End(tokens.map_err(|error| one_line(&error))));
        }
    }

    fn limits() -> Limits {
        Limits::new(1000, FrameSelection::Uniform(2).into())
    }

    fn request(tokens: usize) -> Prepared {
        let line =
            format!(r#"{{"prompt": "{PROMPT}", "max_tokens": {tokens}, "ignore_eos": true}}"#);
        let question = Question::parse(line.as_bytes()).expect("a request");
        question.prepare(&limits()).expect("no media")
    }

    /// Returns the least memory with which an answer of `tokens` tokens fits if it is the only one.
    fn least_memory(engine: &AnyEngine, tokens: usize) -> u64 {
        let mut prompt = 0;
        let canceled = request(tokens).answer(&mut engine.session(), &limits(), None, |event| {
            if let Event::Prepared { prompt_tokens, .. } = event {
                prompt = prompt_tokens;
            }
            ControlFlow::Break(())
        });
        assert!(prompt > 0, "{canceled:?}");
        let messages = [user_message(&[], PROMPT)];
        let request = Request {
            max_tokens: tokens,
            ..Request::new(&messages)
        };
        let estimate = RequestEstimator::new(engine.clone()).estimate(&request, &[], prompt);
        estimate.minimum()
    }

    /// Serves two requests for numbers of tokens at the same time with `available` bytes of memory.
    /// Returns what their clients received, in order.
    fn serve(engine: &AnyEngine, tokens: [usize; 2], available: u64) -> Vec<(usize, Received)> {
        let memory = Memory {
            total: 1 << 40,
            available,
            group: None,
            process: None,
            swap: 0,
            zram: 0,
        };
        let estimator = RequestEstimator::new(engine.clone()).with_memory(memory);
        let mut answering = Answering::new(engine.session(), Some(estimator), 2);
        let service = Service::new(limits(), 4, 2);
        let all = Arc::new(Mutex::new(Vec::new()));
        for (number, tokens) in (1..).zip(tokens) {
            let client = Note {
                number,
                all: all.clone(),
            };
            let entry = service.enter(Owner::Connection(number as u64));
            let entry = entry.expect("a place");
            entry.submit(request(tokens), Box::new(client), Box::new(()));
        }
        let mut watchdog = Watchdog::new();
        // A request begins and ends in turns of its own, at most.
        for _ in 0..tokens.iter().sum::<usize>() + 4 {
            answering.turn(&service, Duration::ZERO, &mut watchdog);
        }
        assert!(answering.running.is_empty() && answering.waiting.is_none());
        drop((answering, service));
        let all = Arc::into_inner(all).expect("the clients are gone");
        all.into_inner().expect("no client panics with the lock")
    }

    fn at(all: &[(usize, Received)], entry: (usize, Received)) -> usize {
        let found = all.iter().position(|other| *other == entry);
        found.unwrap_or_else(|| panic!("no {entry:?} in {all:?}"))
    }

    /// A request that fits alone, but not beside the running one, begins when that has ended.
    #[test]
    fn a_request_waits_for_the_memory_of_the_running_one() {
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        let engine = Device::Cpu.load(&record).expect("an engine");
        let least = least_memory(&engine, 20);
        let ends = |all: &[(usize, Received)]| {
            [1, 2].map(|number| at(all, (number, Received::End(Ok(20)))))
        };
        let all = serve(&engine, [20, 20], least);
        let [first, second] = ends(&all);
        let begin = at(&all, (2, Received::Token));
        assert!(first < begin && begin < second, "{all:?}");
        // With memory for both, they are answered together.
        let all = serve(&engine, [20, 20], 2 * least);
        let begin = at(&all, (2, Received::Token));
        assert!(begin < ends(&all)[0], "{all:?}");
    }

    /// A request that does not fit alone either is rejected when it has been tried alone.
    #[test]
    fn a_request_that_never_fits_is_rejected() {
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        let engine = Device::Cpu.load(&record).expect("an engine");
        let all = serve(&engine, [20, 500], least_memory(&engine, 20));
        let first = at(&all, (1, Received::End(Ok(20))));
        let Some((2, Received::End(Err(error)))) = all.get(first + 1) else {
            panic!("{all:?}");
        };
        assert!(error.contains("does not fit into memory"), "{error}");
        assert_eq!(all.len(), first + 2, "{all:?}");
    }
}
