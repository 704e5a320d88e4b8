//! Timing of named stages: wall time, calls and peak memory.
//!
//! A *top* stage is a step from the input files to the answer (`load`, `media`, `preprocess`,
//! `vision`, `projector`, `prefill`, `decode`). *Modules* are measured inside it and named by their
//! path (`vision.blocks.7.attention`). Model code always creates the guards; while nothing is
//! recorded, a guard costs one thread-local read.
//!
//! ```
//! use edge_lmm_ops::stage;
//! stage::record(None);
//! {
//!     let _prefill = stage::top("prefill");
//!     let _layer = stage::scope(format_args!("text.layers.{}", 0));
//!     let _attention = stage::module("attention");
//! }
//! let report = stage::finish();
//! assert_eq!(report[1].name, "text.layers.0.attention");
//! assert_eq!(report[1].stage, "prefill");
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Arguments;
use std::time::{Duration, Instant};

use edge_lmm_kernels::memory;

/// Cost of a stage or module, summed over its calls.
#[derive(Debug, Clone, PartialEq)]
pub struct StageRecord {
    /// Name of a top stage, or the path of a module.
    pub name: String,
    /// Enclosing top stage; equal to `name` for a top stage.
    pub stage: &'static str,
    /// Wall time.
    pub time: Duration,
    /// Number of calls.
    pub calls: usize,
    /// Peak heap use during the calls, in bytes; 0 if the counting allocator is not installed.
    pub peak_bytes: usize,
    /// GPU kernels launched by this crate during the calls; 0 on the CPU.
    pub launches: usize,
    /// Start of each call, relative to that of the recording, and its duration, for traces.
    pub spans: Vec<(Duration, Duration)>,
}

struct Recorder {
    origin: Instant,
    synchronize: Option<Box<dyn Fn()>>,
    top: &'static str,
    prefix: String,
    index: HashMap<(&'static str, String), usize>,
    records: Vec<StageRecord>,
}

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    static ON: Cell<bool> = const { Cell::new(false) };
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Starts recording on this thread. `synchronize` is called at the end of every stage; it waits for
/// asynchronous devices.
pub fn record(synchronize: Option<Box<dyn Fn()>>) {
    RECORDER.with_borrow_mut(|recorder| {
        *recorder = Some(Recorder {
            origin: Instant::now(),
            synchronize,
            top: "",
            prefix: String::new(),
            index: HashMap::new(),
            records: Vec::new(),
        });
    });
    ON.set(true);
}

/// Returns `true` if this thread records.
pub fn recording() -> bool {
    ON.get()
}

/// Counts a GPU kernel launched by this thread.
#[cfg(feature = "cube")]
pub(crate) fn launched() {
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// Stops recording and returns the stages in the order in which they were first entered.
pub fn finish() -> Vec<StageRecord> {
    ON.set(false);
    RECORDER
        .take()
        .map_or_else(Vec::new, |recorder| recorder.records)
}

/// Guard that ends the stage on drop.
#[must_use = "a stage lasts as long as its guard"]
pub struct Guard(Option<Running>);

enum Running {
    Scope {
        prefix_len: usize,
    },
    Timed {
        slot: usize,
        start: Instant,
        launches: usize,
        outer_peak: usize,
        outer_top: &'static str,
    },
}

/// Enters a top stage.
pub fn top(name: &'static str) -> Guard {
    if !recording() {
        return Guard(None);
    }
    enter(|recorder| {
        let outer = std::mem::replace(&mut recorder.top, name);
        (recorder.slot(name, name.to_owned()), outer)
    })
}

/// Enters a module, named by the surrounding [`scope`]s and `name`.
pub fn module(name: &'static str) -> Guard {
    if !recording() {
        return Guard(None);
    }
    enter(|recorder| {
        let path = join(&recorder.prefix, format_args!("{name}"));
        (recorder.slot(recorder.top, path), recorder.top)
    })
}

/// Extends the path of the modules inside it, without measuring anything itself.
pub fn scope(path: Arguments<'_>) -> Guard {
    if !recording() {
        return Guard(None);
    }
    RECORDER.with_borrow_mut(|recorder| {
        Guard(recorder.as_mut().map(|recorder| {
            let prefix_len = recorder.prefix.len();
            recorder.prefix = join(&recorder.prefix, path);
            Running::Scope { prefix_len }
        }))
    })
}

fn join(prefix: &str, name: Arguments<'_>) -> String {
    if prefix.is_empty() {
        name.to_string()
    } else {
        format!("{prefix}.{name}")
    }
}

fn enter(slot: impl FnOnce(&mut Recorder) -> (usize, &'static str)) -> Guard {
    RECORDER.with_borrow_mut(|recorder| {
        Guard(recorder.as_mut().map(|recorder| {
            let (slot, outer_top) = slot(recorder);
            let outer_peak = memory::peak_bytes();
            memory::set_peak(memory::current_bytes());
            Running::Timed {
                slot,
                start: Instant::now(),
                launches: LAUNCHES.get(),
                outer_peak,
                outer_top,
            }
        }))
    })
}

impl Recorder {
    fn slot(&mut self, stage: &'static str, name: String) -> usize {
        *self
            .index
            .entry((stage, name))
            .or_insert_with_key(|(stage, name)| {
                self.records.push(StageRecord {
                    name: name.clone(),
                    stage,
                    time: Duration::ZERO,
                    calls: 0,
                    peak_bytes: 0,
                    launches: 0,
                    spans: Vec::new(),
                });
                self.records.len() - 1
            })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(running) = self.0.take() else { return };
        RECORDER.with_borrow_mut(|recorder| {
            let Some(recorder) = recorder else { return };
            match running {
                Running::Scope { prefix_len } => recorder.prefix.truncate(prefix_len),
                Running::Timed {
                    slot,
                    start,
                    launches,
                    outer_peak,
                    outer_top,
                } => {
                    if let Some(synchronize) = &recorder.synchronize {
                        synchronize();
                    }
                    let time = start.elapsed();
                    let peak = memory::peak_bytes();
                    memory::set_peak(peak.max(outer_peak));
                    recorder.top = outer_top;
                    // The slot does not exist if recording was restarted inside the stage.
                    let Some(record) = recorder.records.get_mut(slot) else {
                        return;
                    };
                    record.time += time;
                    record.calls += 1;
                    record.launches += LAUNCHES.get() - launches;
                    record.peak_bytes = record.peak_bytes.max(peak);
                    record
                        .spans
                        .push((start.saturating_duration_since(recorder.origin), time));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_while_off() {
        {
            let _top = top("vision");
            let _module = module("patch_embed");
        }
        assert!(finish().is_empty());
    }

    #[test]
    fn modules_belong_to_their_stage_and_sum_over_calls() {
        record(None);
        for name in ["prefill", "decode", "decode"] {
            let _top = top(name);
            let _text = scope(format_args!("text"));
            for layer in 0..2 {
                let _layer = scope(format_args!("layers.{layer}"));
                let _mlp = module("mlp");
            }
        }
        let records = finish();
        let find = |stage: &str, name: &str| {
            records
                .iter()
                .find(|r| r.stage == stage && r.name == name)
                .unwrap_or_else(|| panic!("{stage} {name} in {records:?}"))
                .calls
        };
        assert_eq!(find("prefill", "prefill"), 1);
        assert_eq!(find("decode", "decode"), 2);
        assert_eq!(find("prefill", "text.layers.1.mlp"), 1);
        assert_eq!(find("decode", "text.layers.1.mlp"), 2);
        assert_eq!(records.len(), 6);
    }

    #[test]
    fn a_stage_lasts_at_least_as_long_as_its_modules() {
        record(None);
        {
            let _top = top("vision");
            let _module = module("patch_embed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let records = finish();
        assert!(records[1].time >= Duration::from_millis(5));
        assert!(records[0].time >= records[1].time);
        assert_eq!(records[0].spans.len(), 1);
    }
}
