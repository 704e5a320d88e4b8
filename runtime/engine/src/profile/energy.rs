//! Energy that the machine reports, sampled in the background.

mod readers;

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use readers::{Ina3221, PmicAdc, Rapl, find};

/// A value of a sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Energy since some time in the past, in joules.
    Joules(f64),
    /// Current power in watts.
    Watts(f64),
}

/// A source of energy or power figures.
pub trait EnergyReader: Send {
    /// Names the source and what it covers.
    fn source(&self) -> String;

    /// Time between readings.
    fn interval(&self) -> Duration;

    /// Reads the sensor; `None` if that fails.
    fn read(&mut self) -> Option<Reading>;
}

/// A running measurement.
pub struct EnergyMeter {
    source: String,
    stop: Sender<()>,
    thread: JoinHandle<Vec<(Instant, f64)>>,
}

/// Energy over time.
#[derive(Debug, Clone, PartialEq)]
pub struct EnergyTrace {
    /// Name of the source and what it covers.
    pub source: String,
    /// Time, and the energy in joules since the first sample.
    samples: Vec<(Instant, f64)>,
}

impl EnergyMeter {
    /// Starts to read a sensor on a thread of its own. Returns `None` if it cannot be read.
    pub fn start(mut reader: Box<dyn EnergyReader>) -> Option<Self> {
        let source = reader.source();
        let mut integral = Integral::new(reader.read()?, Instant::now());
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("energy".to_owned());
        let thread = thread.spawn(move || {
            let mut samples = vec![(integral.time, 0.0)];
            loop {
                let wait = stopped.recv_timeout(reader.interval());
                if let Some(reading) = reader.read() {
                    let now = Instant::now();
                    samples.push((now, integral.add(reading, now)));
                }
                if wait != Err(RecvTimeoutError::Timeout) {
                    return samples;
                }
            }
        });
        Some(Self {
            source,
            stop,
            thread: thread.ok()?,
        })
    }

    /// Ends the measurement after a last reading.
    pub fn stop(self) -> EnergyTrace {
        drop(self.stop);
        EnergyTrace {
            source: self.source,
            samples: self.thread.join().unwrap_or_default(),
        }
    }
}

/// Sum of readings.
struct Integral {
    last: Reading,
    time: Instant,
    joules: f64,
}

impl Integral {
    fn new(first: Reading, time: Instant) -> Self {
        Self {
            last: first,
            time,
            joules: 0.0,
        }
    }

    /// Adds a reading. Power is integrated by the trapezoidal rule.
    fn add(&mut self, reading: Reading, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.time).as_secs_f64();
        self.joules += match (self.last, reading) {
            (Reading::Joules(before), Reading::Joules(after)) => after - before,
            (Reading::Watts(before), Reading::Watts(after)) => (before + after) / 2.0 * seconds,
            _ => 0.0,
        };
        (self.last, self.time) = (reading, now);
        self.joules
    }
}

impl EnergyTrace {
    /// Returns the energy between two times in joules, interpolated linearly between samples. `None`
    /// if a part of that time was not measured.
    pub fn between(&self, start: Instant, end: Instant) -> Option<f64> {
        Some(self.at(end)? - self.at(start)?)
    }

    fn at(&self, time: Instant) -> Option<f64> {
        let after = self.samples.partition_point(|&(sample, _)| sample <= time);
        let &(start, before) = self.samples.get(after.checked_sub(1)?)?;
        let Some(&(end, next)) = self.samples.get(after) else {
            return (start == time).then_some(before);
        };
        let share = (time - start).as_secs_f64() / (end - start).as_secs_f64();
        Some(before + share * (next - before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_is_interpolated_between_samples() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let trace = EnergyTrace {
            source: String::new(),
            samples: vec![(at(0), 0.0), (at(10), 1.0), (at(30), 2.0)],
        };
        let close = |found: Option<f64>, expected: f64| {
            let found = found.expect("it was measured");
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        };
        close(trace.between(at(0), at(30)), 2.0);
        close(trace.between(at(5), at(20)), 1.0);
        close(trace.between(at(10), at(30)), 1.0);
        assert_eq!(trace.between(at(5), at(31)), None);
    }

    #[test]
    fn power_is_integrated() {
        let start = Instant::now();
        let mut integral = Integral::new(Reading::Watts(4.0), start);
        let joules = integral.add(Reading::Watts(8.0), start + Duration::from_millis(500));
        assert!((joules - 3.0).abs() < 1e-9, "{joules}");
        let mut integral = Integral::new(Reading::Joules(10.0), start);
        integral.add(Reading::Joules(11.0), start);
        assert_eq!(integral.add(Reading::Joules(12.5), start), 2.5);
    }

    struct Steady;

    impl EnergyReader for Steady {
        fn source(&self) -> String {
            "steady".to_owned()
        }

        fn interval(&self) -> Duration {
            Duration::from_millis(2)
        }

        fn read(&mut self) -> Option<Reading> {
            Some(Reading::Watts(5.0))
        }
    }

    #[test]
    fn a_meter_samples_until_it_is_stopped() {
        let meter = EnergyMeter::start(Box::new(Steady)).expect("it can be read");
        let (start, wait) = (Instant::now(), Duration::from_millis(20));
        std::thread::sleep(wait);
        let end = Instant::now();
        let trace = meter.stop();
        let joules = trace.between(start, end).expect("it was measured");
        let expected = 5.0 * (end - start).as_secs_f64();
        assert!(
            (joules / expected - 1.0).abs() < 1e-6,
            "{joules} {expected}"
        );
    }
}
