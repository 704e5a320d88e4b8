//! Notifications of systemd's watchdog.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// A notifier for systemd's watchdog (`WatchdogSec=`), active while layers and tokens are
/// completed.
pub struct Watchdog {
    interval: Duration,
    asked: bool,
    last: Instant,
}

impl Watchdog {
    /// Reads the interval from the environment.
    pub fn new() -> Self {
        let asked = sd_notify::watchdog_enabled();
        Self {
            // Twice per period of systemd, as its documentation recommends.
            interval: asked.map_or(Duration::from_secs(60), |time| time / 2),
            asked: asked.is_some(),
            last: Instant::now(),
        }
    }

    /// Returns the longest time between two notifications.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Notifies systemd if it is time.
    pub fn notify(&mut self) {
        if self.asked && self.last.elapsed() >= self.interval / 2 {
            // A failure cannot be reported to anyone else.
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            self.last = Instant::now();
        }
    }
}
