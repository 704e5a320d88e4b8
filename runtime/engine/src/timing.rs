//! Time and memory of the stages of an answer.
//!
//! An answer brings its own timing if its [`Request`](crate::Request) asks for it. A [`Recording`]
//! measures anything else: loading a model, decoding media, modules of your own.
//!
//! ```
//! use edge_lmm::Device;
//! use edge_lmm::timing::{self, Recording};
//!
//! let mut recording = Recording::new(Device::Cpu);
//! recording.run(|| {
//!     let _stage = timing::stage("sort");
//!     let _module = timing::module("sort.numbers");
//!     [3, 1, 2].sort();
//! });
//! let timing = recording.finish();
//! assert_eq!(timing.stages()[0].calls, 1);
//! println!("{timing}");
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use edge_lmm_ops::KernelBackend;
use edge_lmm_ops::stage::{self, Span, StageRecord, Work};
use serde::{Serialize, Serializer};

use crate::columns::columns;
use crate::device::Device;
use crate::units::bytes;

mod trace;

pub use edge_lmm_ops::stage::{Entered, Guard, apart, module, scope, top as stage};

/// Cost of a stage, or of a module inside one, summed over its calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stage {
    /// Name of a stage (`vision`), or path of a module (`vision.blocks.7.mlp`).
    pub name: String,
    /// Enclosing stage; equal to `name` for a stage.
    pub stage: &'static str,
    /// Wall time; in JSON `ms`, in milliseconds.
    #[serde(rename = "ms", serialize_with = "milliseconds")]
    pub time: Duration,
    /// Number of calls.
    pub calls: usize,
    /// Peak heap use during the calls, in bytes; 0 without the
    /// [`CountingAllocator`](crate::memory::CountingAllocator).
    pub peak_bytes: usize,
    /// GPU kernels launched during the calls; 0 on the CPU.
    pub launches: usize,
    /// Index of the enclosing stage or module; `None` for a stage.
    #[serde(skip)]
    pub parent: Option<usize>,
    /// Part of `time` inside modules that this one encloses.
    #[serde(skip)]
    pub child_time: Duration,
    /// Time that threads wait within parallel calls, summed over threads. Only
    /// [detailed](Recording::detailed) recordings measure it.
    #[serde(skip)]
    pub wait: Duration,
    /// Largest difference between the peak during a call and the heap use at its start.
    #[serde(skip)]
    pub own_peak_bytes: usize,
    /// Heap use at the start of that call.
    #[serde(skip)]
    pub held_bytes: usize,
    /// Multiply-accumulates, bytes and tokens of all calls, in [detailed](Recording::detailed)
    /// recordings.
    #[serde(skip)]
    pub work: Work,
    /// Address and length of the weights that the module itself reads from this process's memory, in
    /// [detailed](Recording::detailed) recordings.
    #[serde(skip)]
    pub weights: Vec<(usize, usize)>,
    /// The calls on the recording thread.
    #[serde(skip)]
    pub spans: Vec<Span>,
    /// The calls on a thread of their own, such as the preparation of a video while it is encoded.
    #[serde(skip)]
    pub helper_spans: Vec<Span>,
    /// Part of `time` that other stages hid, as they ran at the same time; in JSON `hidden_ms`.
    #[serde(
        rename = "hidden_ms",
        serialize_with = "milliseconds",
        skip_serializing_if = "Duration::is_zero"
    )]
    pub hidden: Duration,
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1e3)
}

impl Stage {
    #[cfg(any(feature = "serve", test))]
    pub(crate) fn new(name: &str, stage: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            stage,
            time: Duration::ZERO,
            calls: 0,
            peak_bytes: 0,
            launches: 0,
            parent: None,
            child_time: Duration::ZERO,
            wait: Duration::ZERO,
            own_peak_bytes: 0,
            held_bytes: 0,
            work: Work::default(),
            weights: Vec::new(),
            spans: Vec::new(),
            helper_spans: Vec::new(),
            hidden: Duration::ZERO,
        }
    }

    /// Returns the wall time in milliseconds.
    pub fn ms(&self) -> f64 {
        self.time.as_secs_f64() * 1e3
    }

    /// Returns the wall time outside of the modules that this one encloses.
    pub fn own_time(&self) -> Duration {
        self.time.saturating_sub(self.child_time)
    }

    /// Returns `true` for a stage, `false` for a module inside one.
    pub fn is_top(&self) -> bool {
        self.name == self.stage
    }
}

impl From<StageRecord> for Stage {
    fn from(record: StageRecord) -> Self {
        Self {
            name: record.name,
            stage: record.stage,
            time: record.time,
            calls: record.calls,
            peak_bytes: record.peak_bytes,
            launches: record.launches,
            parent: record.parent,
            child_time: record.child_time,
            wait: record.wait,
            own_peak_bytes: record.own_peak_bytes,
            held_bytes: record.held_bytes,
            work: record.work,
            weights: record.weights,
            spans: record.spans,
            helper_spans: record.helper_spans,
            hidden: record.hidden,
        }
    }
}

/// Stages and modules in the order in which they were first entered. As text, a table in which the
/// layers of a stack are one row.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Timing(Vec<Stage>);

impl Timing {
    pub(crate) fn of(records: Vec<StageRecord>) -> Self {
        Self(records.into_iter().map(Stage::from).collect())
    }

    /// Returns the stages with their modules.
    pub fn stages(&self) -> &[Stage] {
        &self.0
    }

    /// Returns the stage of that name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.0
            .iter()
            .find(|stage| stage.is_top() && stage.name == name)
    }

    /// Returns the total time of all stages. Time in which two ran at once counts once.
    pub fn total(&self) -> Duration {
        let stages = self.0.iter().filter(|stage| stage.is_top());
        stages
            .map(|stage| stage.time.saturating_sub(stage.hidden))
            .sum()
    }

    /// Returns the time of stages that others hid.
    pub fn hidden(&self) -> Duration {
        let stages = self.0.iter().filter(|stage| stage.is_top());
        stages.map(|stage| stage.hidden).sum()
    }

    /// Prints the table.
    pub fn print_summary(&self) {
        println!("{self}");
    }

    /// Adds a stage that was measured elsewhere in front of the others.
    #[cfg(feature = "serve")]
    pub(crate) fn prepend(&mut self, name: &'static str, time: Duration, calls: usize) {
        for parent in self.0.iter_mut().filter_map(|stage| stage.parent.as_mut()) {
            *parent += 1;
        }
        let stage = Stage {
            time,
            calls,
            ..Stage::new(name, name)
        };
        self.0.insert(0, stage);
    }
}

/// A measurement of stages. It records the stages of a thread while that thread runs a function
/// with [`run`](Self::run) or has [`enter`](Self::enter)ed it.
pub struct Recording(stage::Recording);

impl Recording {
    /// Creates a recording without stages. On a device that works asynchronously, a stage ends when
    /// its work is done.
    pub fn new(device: Device) -> Self {
        Self(stage::Recording::new(device.synchronize()))
    }

    /// Creates a recording that also measures the parts of modules, such as the projections of
    /// attention, counts their work and measures waiting threads. On a GPU it is slower, because
    /// every part waits for the device.
    pub fn detailed(device: Device) -> Self {
        Self(stage::Recording::detailed(device.synchronize()))
    }

    /// Creates a recording like [`Self::new`], for the device of a backend.
    pub(crate) fn on<B: KernelBackend>(device: &B::Device) -> Self {
        let synchronize = crate::device::synchronize::<B>(device.clone());
        Self(stage::Recording::new(Some(synchronize)))
    }

    /// Records on this thread until the guard is dropped.
    pub fn enter(&mut self) -> Entered<'_> {
        self.0.enter()
    }

    /// Runs `f` and records its stages.
    pub fn run<T>(&mut self, f: impl FnOnce() -> T) -> T {
        self.0.run(f)
    }

    /// Returns the start of the recording, which [`Stage::spans`] are relative to.
    pub fn origin(&self) -> Option<Instant> {
        self.0.origin()
    }

    /// Ends the recording and returns the stages.
    pub fn finish(self) -> Timing {
        Timing::of(self.0.finish())
    }
}

/// A row of the table: a stage, or the modules of one kind inside it.
struct Row {
    name: String,
    time: Duration,
    calls: usize,
    peak_bytes: usize,
    top: bool,
}

impl Row {
    fn new(stage: &Stage, name: String) -> Self {
        Self {
            name,
            time: stage.time,
            calls: stage.calls,
            peak_bytes: stage.peak_bytes,
            top: stage.is_top(),
        }
    }
}

/// Returns the stages, each followed by its modules; the layers of a stack are added up.
fn rows(stages: &[Stage]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for top in stages.iter().filter(|stage| stage.is_top()) {
        rows.push(Row::new(top, top.name.clone()));
        let first = rows.len();
        let inside = |stage: &&Stage| stage.stage == top.name && !stage.is_top();
        for module in stages.iter().filter(inside) {
            let name = without_numbers(&module.name);
            match rows[first..].iter_mut().find(|row| row.name == name) {
                Some(row) => {
                    row.time += module.time;
                    row.calls += module.calls;
                    row.peak_bytes = row.peak_bytes.max(module.peak_bytes);
                }
                None => rows.push(Row::new(module, name)),
            }
        }
    }
    rows
}

/// Returns the path of a module without its first part, which is the stage's name.
pub(crate) fn within_stage(path: &str) -> &str {
    path.split_once('.').map_or(path, |(_, rest)| rest)
}

/// Replaces the numbers of a path: `vision.blocks.7.mlp` becomes `vision.blocks.*.mlp`.
pub fn without_numbers(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('.')
        .map(|part| match part.parse::<usize>() {
            Ok(_) => "*",
            Err(_) => part,
        })
        .collect();
    parts.join(".")
}

/// Formats a time in milliseconds, or in seconds from 10 s on.
pub fn readable(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// The table: time, share of the whole, calls and peak heap; the largest stage is marked.
impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = rows(&self.0);
        let total = self.total();
        let largest = rows.iter().filter(|row| row.top).map(|row| row.time).max();
        let header = ["stage", "time", "share", "calls", "peak heap"];
        let mut cells = vec![header.map(str::to_owned)];
        for row in &rows {
            let share = row.time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
            let mark = row.top && Some(row.time) == largest;
            cells.push([
                match (row.top, mark) {
                    (true, true) => format!("{} <- bottleneck", row.name),
                    (true, false) => row.name.clone(),
                    (false, _) => format!("  {}", within_stage(&row.name)),
                },
                readable(row.time),
                format!("{:.1} %", 100.0 * share),
                row.calls.to_string(),
                bytes(row.peak_bytes),
            ]);
        }
        let (all, none) = ("100.0 %".to_owned(), String::new);
        let hidden = self.hidden();
        if !hidden.is_zero() {
            let time = format!("-{}", readable(hidden));
            cells.push(["at the same time".to_owned(), time, none(), none(), none()]);
        }
        cells.push(["total".to_owned(), readable(total), all, none(), none()]);
        f.write_str(&columns(&cells))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, stage: &'static str, ms: u64) -> Stage {
        Stage {
            time: Duration::from_millis(ms),
            calls: 1,
            peak_bytes: 2048,
            ..Stage::new(name, stage)
        }
    }

    #[test]
    fn layers_are_taken_together_and_the_largest_stage_is_marked() {
        let timing = Timing(vec![
            stage("vision", "vision", 1150),
            stage("vision.blocks.0.mlp", "vision", 300),
            stage("text.decoder.layers.0.cross_attention", "decode", 90),
            stage("load", "load", 0),
            stage("vision.blocks.1.mlp", "vision", 200),
            stage("projector", "projector", 5),
            stage("decode", "decode", 95),
        ]);
        let text = timing.to_string();
        let line = |start: &str| {
            text.lines()
                .find(|line| line.trim_start_matches(['|', ' ']).starts_with(start))
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
        };
        assert!(line("vision ").contains("92.0 %"), "{text}");
        assert!(line("vision <- bottleneck").contains("92.0 %"), "{text}");
        assert!(line("blocks.*.mlp").contains("500.0 ms"), "{text}");
        assert!(!line("decode").contains("bottleneck"), "{text}");
        assert!(line("total").contains("1250.0 ms"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn hidden_time_counts_once() {
        let timing = Timing(vec![
            Stage {
                hidden: Duration::from_millis(30),
                helper_spans: vec![Default::default()],
                ..stage("preprocess", "preprocess", 40)
            },
            stage("vision", "vision", 90),
        ]);
        assert_eq!(timing.total(), Duration::from_millis(100));
        let text = timing.to_string();
        assert!(
            text.contains("-30.0 ms") && text.contains("40.0 %"),
            "{text}"
        );
        let json = serde_json::to_value(&timing).unwrap();
        assert_eq!(json[0]["hidden_ms"], 30.0);
        assert!(json[1].get("hidden_ms").is_none());
    }

    #[test]
    fn long_times_are_in_seconds() {
        assert_eq!(readable(Duration::from_millis(1234)), "1234.0 ms");
        assert_eq!(readable(Duration::from_millis(123_456)), "123.5 s");
    }

    #[test]
    fn stages_are_shown_in_milliseconds() {
        let json = serde_json::to_value(Timing(vec![stage("load", "load", 3)])).unwrap();
        assert_eq!(json[0]["ms"], 3.0);
        assert_eq!(json[0]["peak_bytes"], 2048);
        assert!(json[0].get("spans").is_none() && json[0].get("time").is_none());
    }
}
