//! The queue of requests before the engine: bounded, and fair to clients that send few of them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The client of a request. Clients take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A connection on this machine.
    Connection(u64),
    /// All connections of another machine.
    #[cfg_attr(not(feature = "http"), expect(dead_code))]
    Address(IpAddr),
}

/// No place is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Requests that would have been answered before.
    pub position: usize,
    /// Seconds after which another attempt is worthwhile.
    pub retry_after: u64,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            retry_after,
        } = self;
        write!(
            f,
            "the queue is full: {position} requests are ahead; try again in {retry_after} s"
        )
    }
}

/// Longest time to wait that a client is told, in seconds.
const LONGEST_WAIT: u64 = 600;

/// A queue of `J`. Clones share it.
pub struct Queue<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    pushed: Condvar,
    places: usize,
    /// Maximum number of jobs that are answered at the same time.
    parallel: usize,
}

struct State<J> {
    /// Jobs of each client, the next one's first.
    lanes: VecDeque<(Owner, VecDeque<J>)>,
    /// Places of each client: its jobs and those that it prepares.
    held: HashMap<Owner, usize>,
    /// Jobs that are being answered.
    answering: usize,
    /// Moving average of the time of an answer.
    mean: Option<Duration>,
}

impl<J> Clone for Queue<J> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<J> Queue<J> {
    /// Creates a queue of `places`, of which a single client can have half, for jobs of which up to
    /// `parallel` are answered at the same time.
    pub fn new(places: usize, parallel: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    lanes: VecDeque::new(),
                    held: HashMap::new(),
                    answering: 0,
                    mean: None,
                }),
                pushed: Condvar::new(),
                places,
                parallel,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request that is about to be prepared. Returns it with the number of
    /// requests ahead: those that end before it begins.
    ///
    /// # Errors
    /// If no place is left for this client.
    pub fn enter(&self, owner: Owner) -> Result<(Place<J>, usize), Full> {
        let mut state = self.state();
        let own = state.held.get(&owner).copied().unwrap_or(0);
        let parallel = self.shared.parallel;
        let position = (state.before(owner) + 1).saturating_sub(parallel);
        let taken: usize = state.held.values().sum();
        if taken >= self.shared.places || own >= self.shared.places.div_ceil(2) {
            let mean = state.mean.unwrap_or(Duration::from_secs(1));
            let wait = mean * position as u32 / parallel as u32;
            return Err(Full {
                position,
                retry_after: wait.as_secs().clamp(1, LONGEST_WAIT),
            });
        }
        *state.held.entry(owner).or_default() += 1;
        let place = Place {
            owner,
            queue: self.clone(),
        };
        Ok((place, position))
    }

    /// Appends a job to those of its client.
    pub fn push(&self, owner: Owner, job: J) {
        let mut state = self.state();
        match state.lanes.iter_mut().find(|lane| lane.0 == owner) {
            Some((_, jobs)) => jobs.push_back(job),
            None => state.lanes.push_back((owner, VecDeque::from([job]))),
        }
        self.shared.pushed.notify_one();
    }

    /// Waits for the next job; `None` after `timeout`. [`Self::finished`] follows each job.
    pub fn next(&self, timeout: Duration) -> Option<J> {
        let is_empty = |state: &mut State<J>| state.lanes.is_empty();
        let waited = (self.shared.pushed).wait_timeout_while(self.state(), timeout, is_empty);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (owner, mut jobs) = state.lanes.pop_front()?;
        let job = jobs.pop_front();
        if !jobs.is_empty() {
            state.lanes.push_back((owner, jobs));
        }
        state.answering += usize::from(job.is_some());
        job
    }

    /// Ends a job that took `time`; `None` if it was not answered.
    pub fn finished(&self, time: Option<Duration>) {
        let mut state = self.state();
        state.answering = state.answering.saturating_sub(1);
        if let Some(time) = time {
            let mean = state.mean.unwrap_or(time);
            state.mean = Some((mean * 7 + time) / 8);
        }
    }

    /// Returns the number of requests that wait or are being prepared.
    #[cfg(feature = "http")]
    pub fn waiting(&self) -> usize {
        self.state().held.values().sum()
    }

    /// Returns the number of requests that are being answered.
    #[cfg(feature = "http")]
    pub fn answering(&self) -> usize {
        self.state().answering
    }
}

impl<J> State<J> {
    /// Returns the number of requests that begin before the next one of a client and have not ended:
    /// each other client has as many turns until then as this one.
    fn before(&self, owner: Owner) -> usize {
        let own = self.held.get(&owner).copied().unwrap_or(0);
        let others = self.held.iter().filter(|(other, _)| **other != owner);
        let before: usize = others.map(|(_, &held)| held.min(own + 1)).sum();
        before + own + self.answering
    }
}

/// A place in the queue, given back on drop.
pub struct Place<J> {
    owner: Owner,
    queue: Queue<J>,
}

impl<J> Drop for Place<J> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        if let Some(held) = state.held.get_mut(&self.owner) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Owner = Owner::Connection(1);
    const TWO: Owner = Owner::Connection(2);

    /// Enters, and pushes a job that keeps the place.
    fn add(queue: &Queue<u32>, owner: Owner, job: u32) -> (Place<u32>, usize) {
        let entered = queue.enter(owner).expect("a place");
        queue.push(owner, job);
        entered
    }

    fn drain(queue: &Queue<u32>) -> Vec<u32> {
        let next = || {
            let job = queue.next(Duration::ZERO);
            queue.finished(None);
            job
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn clients_take_turns() {
        let queue = Queue::new(8, 1);
        let places = [
            add(&queue, ONE, 10),
            add(&queue, ONE, 11),
            add(&queue, ONE, 12),
            add(&queue, TWO, 20),
            add(&queue, TWO, 21),
        ];
        let positions: Vec<usize> = places.iter().map(|place| place.1).collect();
        assert_eq!(positions, [0, 1, 2, 1, 3]);
        assert_eq!(drain(&queue), [10, 20, 11, 21, 12]);
    }

    /// A request begins beside others, so that fewer are ahead.
    #[test]
    fn several_jobs_are_answered_at_the_same_time() {
        let queue = Queue::new(8, 3);
        let mut places: Vec<_> = (0..4).map(|job| add(&queue, ONE, job)).collect();
        let positions: Vec<usize> = places.iter().map(|place| place.1).collect();
        assert_eq!(positions, [0, 0, 0, 1]);
        for job in 0..3 {
            assert_eq!(queue.next(Duration::ZERO), Some(job));
        }
        places.drain(..3);
        assert_eq!(add(&queue, TWO, 4).1, 2);
        for _ in 0..3 {
            queue.finished(Some(Duration::from_secs(6)));
        }
        assert_eq!(add(&queue, TWO, 5).1, 0);
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let queue = Queue::<u32>::new(4, 1);
        let mut held = vec![queue.enter(ONE).ok(), queue.enter(ONE).ok()];
        let full = queue
            .enter(ONE)
            .err()
            .expect("half of the places are taken");
        assert_eq!((full.position, full.retry_after), (2, 2));
        held.push(queue.enter(TWO).ok());
        held.push(queue.enter(Owner::Connection(3)).ok());
        assert!(queue.enter(Owner::Connection(4)).is_err());
        drop(held);
        assert!(queue.enter(ONE).is_ok());
    }

    #[test]
    fn the_wait_follows_the_answers() {
        let queue = Queue::<u32>::new(2, 1);
        let _place = add(&queue, ONE, 1);
        assert_eq!(queue.next(Duration::ZERO), Some(1));
        queue.finished(Some(Duration::from_secs(9)));
        let full = queue.enter(ONE).err().expect("it has half of the places");
        assert_eq!(full.retry_after, 9);
        assert_eq!(queue.next(Duration::ZERO), None);
    }
}
