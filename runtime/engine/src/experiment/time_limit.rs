//! Limit of the time that measurements take.

use std::time::{Duration, Instant};

/// Time limit of one or several experiments, from its creation. A measurement that is estimated to
/// end after the limit is not started. The limit is exceeded by at most the error of the last
/// estimate.
#[derive(Debug)]
pub struct TimeLimit {
    start: Instant,
    limit: Duration,
    /// Time after which no further repeat starts.
    repeats: Duration,
    /// Number and total time of the measurements so far.
    measured: (u32, Duration),
}

impl TimeLimit {
    /// Starts the time.
    pub fn new(limit: Duration) -> Self {
        Self {
            start: Instant::now(),
            limit,
            repeats: limit,
            measured: (0, Duration::ZERO),
        }
    }

    /// Limits the repeats of the next experiment to an equal part of the time that is left, where
    /// `experiments` of them are still to run.
    pub fn share(&mut self, experiments: usize) {
        let elapsed = self.start.elapsed();
        let left = self.limit.saturating_sub(elapsed);
        self.repeats = elapsed + left / u32::try_from(experiments.max(1)).unwrap_or(u32::MAX);
    }

    /// Returns `true` if `count` measurements are estimated to end within the limit. Each takes
    /// `time`, or as long as the mean of those so far.
    pub(super) fn fits(&self, time: Option<Duration>, count: usize) -> bool {
        let (number, total) = self.measured;
        let mean = total.checked_div(number).unwrap_or_default();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let time = time.unwrap_or(mean).saturating_mul(count);
        self.start.elapsed().saturating_add(time) < self.limit
    }

    /// Returns `true` if another repeat, which takes `time`, is estimated to end within the share.
    pub(super) fn repeats(&self, time: Duration) -> bool {
        self.start.elapsed().saturating_add(time) < self.repeats
    }

    /// Adds a measurement that took `time`.
    pub(super) fn add(&mut self, time: Duration) {
        self.measured.0 = self.measured.0.saturating_add(1);
        self.measured.1 = self.measured.1.saturating_add(time);
    }

    /// Returns the reason why a measurement is missing.
    pub(super) fn reason(&self) -> String {
        format!(
            "not measured: the time limit of {} minutes; raise it, or keep the results with --out \
             and repeat the command",
            self.limit.as_secs_f64() / 60.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn measurements_that_do_not_fit_are_known_before() {
        let mut limit = TimeLimit::new(10 * MINUTE);
        // Nothing is known yet.
        assert!(limit.fits(None, 1000));
        limit.add(3 * MINUTE);
        limit.add(5 * MINUTE);
        assert!(limit.fits(None, 2));
        assert!(!limit.fits(None, 3));
        assert!(limit.fits(Some(MINUTE), 9));
        assert!(!limit.fits(Some(MINUTE), 10));
        assert!(!TimeLimit::new(Duration::ZERO).fits(None, 1));
        assert!(limit.reason().contains("time limit of 10 minutes"));
    }

    #[test]
    fn repeats_leave_time_for_other_experiments() {
        let mut limit = TimeLimit::new(10 * MINUTE);
        limit.share(5);
        assert!(limit.repeats(MINUTE) && !limit.repeats(3 * MINUTE));
        limit.share(1);
        assert!(limit.repeats(9 * MINUTE) && !limit.repeats(10 * MINUTE));
    }
}
