//! Measurement inside of parallel calls: time that threads wait, and the parts of attention.
//!
//! A thread that records stages turns its meter [`on`](set). The calls that it makes then add to its
//! [`totals`]. While the meter is off, a call costs one thread-local read.

use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Parts of an attention kernel, in the order of [`Totals::attention`].
pub const ATTENTION_PARTS: [&str; 3] = ["scores", "softmax", "values"];

/// Index of the products of queries and keys.
pub(crate) const SCORES: usize = 0;
/// Index of the softmax, with masks and the rounding of weights.
pub(crate) const SOFTMAX: usize = 1;
/// Index of the products of weights and values, with the merging of chunks.
pub(crate) const VALUES: usize = 2;

/// Sums over the calls of a thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Time that threads wait within parallel calls: for each call its duration times the number of
    /// threads, without the time in which the threads execute tasks.
    pub wait: Duration,
    /// Wall time of the parts of attention, see [`ATTENTION_PARTS`]. The kernels interleave the
    /// parts, so the wall time of a call is divided in the ratio of the times that the tasks
    /// measure.
    pub attention: [Duration; 3],
}

impl Totals {
    const ZERO: Self = Self {
        wait: Duration::ZERO,
        attention: [Duration::ZERO; 3],
    };
}

impl Sub for Totals {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let parts = [SCORES, SOFTMAX, VALUES];
        Self {
            wait: self.wait.saturating_sub(earlier.wait),
            attention: parts
                .map(|part| self.attention[part].saturating_sub(earlier.attention[part])),
        }
    }
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static TOTALS: Cell<Totals> = const { Cell::new(Totals::ZERO) };
}

/// Turns the meter of this thread on or off.
pub fn set(on: bool) {
    ON.set(on);
}

/// Returns `true` if the meter of this thread is on.
pub fn is_on() -> bool {
    ON.get()
}

/// Returns the sums of this thread since it started.
pub fn totals() -> Totals {
    TOTALS.get()
}

/// Adds to the waiting time of this thread's calls.
pub(crate) fn add_wait(wait: Duration) {
    let mut totals = TOTALS.get();
    totals.wait += wait;
    TOTALS.set(totals);
}

/// Times of the parts of an attention call, added up over its tasks.
pub(crate) struct PartTimes {
    start: Instant,
    nanos: [AtomicU64; 3],
}

impl PartTimes {
    /// Starts the measurement of a call if the meter of this thread is on.
    pub(crate) fn start() -> Option<Self> {
        is_on().then(|| Self {
            start: Instant::now(),
            nanos: Default::default(),
        })
    }

    /// Ends the measurement: divides the wall time of the call among the parts and adds it to the
    /// totals of this thread.
    pub(crate) fn finish(self) {
        let wall = self.start.elapsed();
        let nanos = self.nanos.map(AtomicU64::into_inner);
        let sum: u64 = nanos.iter().sum();
        if sum == 0 {
            return;
        }
        let mut totals = TOTALS.get();
        for (total, part) in totals.attention.iter_mut().zip(nanos) {
            *total += wall.mul_f64(part as f64 / sum as f64);
        }
        TOTALS.set(totals);
    }
}

/// Stopwatch of a task. It does nothing if the task is not measured.
pub(crate) struct Laps<'a> {
    times: Option<&'a PartTimes>,
    last: Option<Instant>,
    nanos: [u64; 3],
}

impl<'a> Laps<'a> {
    /// Starts the stopwatch of a task.
    pub(crate) fn new(times: Option<&'a PartTimes>) -> Self {
        Self {
            times,
            last: times.map(|_| Instant::now()),
            nanos: [0; 3],
        }
    }

    /// Adds the time since the last lap to a part.
    pub(crate) fn lap(&mut self, part: usize) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.nanos[part] += now.duration_since(*last).as_nanos() as u64;
            *last = now;
        }
    }
}

impl Drop for Laps<'_> {
    fn drop(&mut self) {
        if let Some(times) = self.times {
            for (sum, nanos) in times.nanos.iter().zip(self.nanos) {
                sum.fetch_add(nanos, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_call_add_up_to_its_wall_time() {
        set(true);
        let before = totals();
        let times = PartTimes::start().expect("the meter is on");
        times.nanos[SCORES].store(30, Relaxed);
        times.nanos[VALUES].store(10, Relaxed);
        std::thread::sleep(Duration::from_millis(4));
        times.finish();
        set(false);
        let [scores, softmax, values] = (totals() - before).attention;
        assert!(scores + values >= Duration::from_millis(4));
        assert_eq!(softmax, Duration::ZERO);
        let ratio = scores.as_secs_f64() / values.as_secs_f64();
        assert!((ratio - 3.0).abs() < 1e-3, "{ratio}");
    }

    #[test]
    fn nothing_is_measured_while_off() {
        assert!(!is_on() && PartTimes::start().is_none());
        let mut laps = Laps::new(None);
        laps.lap(SCORES);
        assert_eq!(laps.nanos, [0; 3]);
    }
}
