//! Timing of named stages: wall time, calls and peak memory.
//!
//! A *top* stage is a step from the input files to the answer (`load`, `media`, `preprocess`,
//! `vision`, `projector`, `prefill`, `decode`). *Modules* are measured inside it and named by their
//! path (`vision.blocks.7.attention`). Model code always creates the guards; while nothing is
//! recorded, a guard costs one thread-local read.
//!
//! ```
//! use edge_lmm_ops::stage::{self, Recording};
//! let mut recording = Recording::new(None);
//! recording.run(|| {
//!     let _prefill = stage::top("prefill");
//!     let _layer = stage::scope(format_args!("text.layers.{}", 0));
//!     let _attention = stage::module("attention");
//! });
//! let report = recording.finish();
//! assert_eq!(report[1].name, "text.layers.0.attention");
//! assert_eq!(report[1].stage, "prefill");
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Arguments;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    /// Start of each call on the recording thread, relative to that of the recording, and its
    /// duration, for traces.
    pub spans: Vec<(Duration, Duration)>,
    /// The same for the calls of a [`Helper`].
    pub helper_spans: Vec<(Duration, Duration)>,
    /// Part of `time` in which the recording thread did other work, see [`Helper`].
    pub hidden: Duration,
}

/// Waits until an asynchronous device has done its work.
pub type Synchronize = Box<dyn Fn() + Send>;

struct Recorder {
    id: u64,
    origin: Instant,
    synchronize: Option<Synchronize>,
    index: HashMap<(&'static str, String), usize>,
    records: Vec<StageRecord>,
}

/// The enclosing stages of a thread and its active recording.
#[derive(Default)]
struct Context {
    top: &'static str,
    prefix: String,
    recorders: Vec<Recorder>,
    /// `true` while a [`Helper`] runs on this thread.
    helps: bool,
}

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    static ON: Cell<bool> = const { Cell::new(false) };
    static CONTEXT: RefCell<Context> = RefCell::default();
}

/// A measurement of stages. It records the stages of a thread while that thread runs a function
/// with [`run`](Self::run) or has [`enter`](Self::enter)ed it. Recordings may be nested: a stage
/// belongs to all that are active when it begins.
pub struct Recording(Option<Recorder>);

/// Guard that interrupts a recording on drop.
#[must_use = "a recording is active as long as its guard"]
pub struct Entered<'a> {
    recording: &'a mut Recording,
    id: u64,
    /// The recording is active on this thread.
    thread: PhantomData<*const ()>,
}

impl Recording {
    /// A recording without stages, whose time begins now. `synchronize` is called at the end of
    /// every stage; it waits for asynchronous devices.
    pub fn new(synchronize: Option<Synchronize>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Some(Recorder {
            id: NEXT.fetch_add(1, Relaxed),
            origin: Instant::now(),
            synchronize,
            index: HashMap::new(),
            records: Vec::new(),
        }))
    }

    /// Records on this thread until the guard is dropped.
    pub fn enter(&mut self) -> Entered<'_> {
        // Only a guard that was leaked leaves no recorder.
        let recorder = self.0.take();
        let id = recorder.as_ref().map_or(u64::MAX, |recorder| recorder.id);
        CONTEXT.with_borrow_mut(|context| context.recorders.extend(recorder));
        ON.set(true);
        Entered {
            recording: self,
            id,
            thread: PhantomData,
        }
    }

    /// Runs `f` and records its stages.
    pub fn run<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let _entered = self.enter();
        f()
    }

    /// The stages, in the order in which they were first entered.
    pub fn finish(self) -> Vec<StageRecord> {
        self.0.map_or_else(Vec::new, |recorder| recorder.records)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CONTEXT.with_borrow_mut(|context| {
            let recorders = &mut context.recorders;
            let place = recorders.iter().position(|other| other.id == self.id);
            self.recording.0 = place.map(|place| recorders.remove(place));
            ON.set(!recorders.is_empty());
        });
    }
}

/// Records the stages of a thread that works for another one, whose recordings they are added to.
///
/// It does not measure memory: the peak belongs to the stages of the other thread.
pub struct Helper(Option<Recording>);

impl Helper {
    /// Creates a helper of this thread. It records nothing if this thread does not.
    pub fn new() -> Self {
        Self(recording().then(|| Recording::new(None)))
    }

    /// Runs `f` on the helping thread and records its stages.
    pub fn run<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let Some(recording) = &mut self.0 else {
            return f();
        };
        CONTEXT.with_borrow_mut(|context| context.helps = true);
        let result = recording.run(f);
        CONTEXT.with_borrow_mut(|context| context.helps = false);
        result
    }

    /// Adds the stages to the recordings of this thread, which waited for `waited` in all. The rest
    /// of the helper's time is [hidden](StageRecord::hidden); if it has several stages, each has its
    /// share.
    pub fn join(self, waited: Duration) {
        let Some(Recording(Some(helper))) = self.0 else {
            return;
        };
        let tops = helper
            .records
            .iter()
            .filter(|record| record.name == record.stage);
        let total: Duration = tops.map(|record| record.time).sum();
        let share =
            total.saturating_sub(waited).as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        CONTEXT.with_borrow_mut(|context| {
            for recorder in &mut context.recorders {
                let offset = helper.origin.saturating_duration_since(recorder.origin);
                for record in &helper.records {
                    let sum = recorder.slot(record.stage, &record.name);
                    sum.time += record.time;
                    sum.calls += record.calls;
                    sum.launches += record.launches;
                    sum.hidden += record.time.mul_f64(share);
                    let spans = record.spans.iter();
                    sum.helper_spans
                        .extend(spans.map(|(start, time)| (*start + offset, *time)));
                }
            }
        });
    }
}

impl Default for Helper {
    fn default() -> Self {
        Self::new()
    }
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

/// Guard that ends the stage on drop.
#[must_use = "a stage lasts as long as its guard"]
pub struct Guard(Option<Running>);

enum Running {
    Scope {
        prefix_len: usize,
    },
    Timed {
        stage: &'static str,
        name: String,
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
    enter(|context| {
        let outer = std::mem::replace(&mut context.top, name);
        (name.to_owned(), outer)
    })
}

/// Enters a module, named by the surrounding [`scope`]s and `name`.
pub fn module(name: &'static str) -> Guard {
    if !recording() {
        return Guard(None);
    }
    enter(|context| {
        let path = join(&context.prefix, format_args!("{name}"));
        (path, context.top)
    })
}

/// Extends the path of the modules inside it, without measuring anything itself.
pub fn scope(path: Arguments<'_>) -> Guard {
    if !recording() {
        return Guard(None);
    }
    CONTEXT.with_borrow_mut(|context| {
        let prefix_len = context.prefix.len();
        context.prefix = join(&context.prefix, path);
        Guard(Some(Running::Scope { prefix_len }))
    })
}

fn join(prefix: &str, name: Arguments<'_>) -> String {
    if prefix.is_empty() {
        name.to_string()
    } else {
        format!("{prefix}.{name}")
    }
}

/// Starts a measurement; `name` gives its name and the top stage around it.
fn enter(name: impl FnOnce(&mut Context) -> (String, &'static str)) -> Guard {
    CONTEXT.with_borrow_mut(|context| {
        let (name, outer_top) = name(context);
        let stage = context.top;
        for recorder in &mut context.recorders {
            recorder.slot(stage, &name);
        }
        let outer_peak = memory::peak_bytes();
        if !context.helps {
            memory::set_peak(memory::current_bytes());
        }
        Guard(Some(Running::Timed {
            stage,
            name,
            start: Instant::now(),
            launches: LAUNCHES.get(),
            outer_peak,
            outer_top,
        }))
    })
}

impl Recorder {
    /// The record of a stage or module, which is added if there is none.
    fn slot(&mut self, stage: &'static str, name: &str) -> &mut StageRecord {
        let records = &mut self.records;
        let slot = *self
            .index
            .entry((stage, name.to_owned()))
            .or_insert_with(|| {
                records.push(StageRecord {
                    name: name.to_owned(),
                    stage,
                    time: Duration::ZERO,
                    calls: 0,
                    peak_bytes: 0,
                    launches: 0,
                    spans: Vec::new(),
                    helper_spans: Vec::new(),
                    hidden: Duration::ZERO,
                });
                records.len() - 1
            });
        &mut self.records[slot]
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(running) = self.0.take() else { return };
        CONTEXT.with_borrow_mut(|context| match running {
            Running::Scope { prefix_len } => context.prefix.truncate(prefix_len),
            Running::Timed {
                stage,
                name,
                start,
                launches,
                outer_peak,
                outer_top,
            } => {
                for recorder in &context.recorders {
                    if let Some(synchronize) = &recorder.synchronize {
                        synchronize();
                    }
                }
                let time = start.elapsed();
                let peak = match context.helps {
                    true => 0,
                    false => {
                        let peak = memory::peak_bytes();
                        memory::set_peak(peak.max(outer_peak));
                        peak
                    }
                };
                context.top = outer_top;
                for recorder in &mut context.recorders {
                    // A recording that was entered inside the stage does not have it.
                    let Some(offset) = start.checked_duration_since(recorder.origin) else {
                        continue;
                    };
                    let record = recorder.slot(stage, &name);
                    record.time += time;
                    record.calls += 1;
                    record.launches += LAUNCHES.get() - launches;
                    record.peak_bytes = record.peak_bytes.max(peak);
                    record.spans.push((offset, time));
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
        let recording = Recording::new(None);
        {
            let _top = top("vision");
            let _module = module("patch_embed");
        }
        assert!(recording.finish().is_empty());
    }

    #[test]
    fn a_stage_belongs_to_all_recordings_around_it() {
        let mut outer = Recording::new(None);
        let mut inner = Recording::new(None);
        outer.run(|| {
            drop(top("load"));
            inner.run(|| drop(top("prefill")));
            drop(top("media"));
        });
        // A recording may go on, on another thread, too.
        let inner = std::thread::spawn(move || {
            inner.run(|| drop(top("decode")));
            inner
        });
        let inner = inner.join().expect("no panic");
        let names = |recording: Recording| -> Vec<String> {
            let records = recording.finish().into_iter();
            records.map(|record| record.name).collect()
        };
        assert_eq!(names(outer), ["load", "prefill", "media"]);
        assert_eq!(names(inner), ["prefill", "decode"]);
    }

    #[test]
    fn a_helper_adds_its_stages() {
        let ms = Duration::from_millis;
        let mut recording = Recording::new(None);
        recording.run(|| {
            let mut helper = Helper::new();
            let helping = std::thread::spawn(move || {
                helper.run(|| {
                    let _top = top("preprocess");
                    std::thread::sleep(ms(20));
                });
                helper
            });
            helping.join().expect("no panic").join(ms(5));
        });
        let records = recording.finish();
        let [record] = &records[..] else {
            panic!("{records:?}")
        };
        assert!(record.time >= ms(20), "{record:?}");
        assert_eq!((record.calls, record.peak_bytes), (1, 0));
        assert_eq!((record.spans.len(), record.helper_spans.len()), (0, 1));
        let shown = record.time - record.hidden;
        assert!(shown.abs_diff(ms(5)) < ms(1), "{record:?}");
    }

    #[test]
    fn a_helper_of_a_thread_without_recordings_records_nothing() {
        let mut helper = Helper::new();
        assert!(!helper.run(recording));
        helper.join(Duration::ZERO);
    }

    #[test]
    fn modules_belong_to_their_stage_and_sum_over_calls() {
        let mut recording = Recording::new(None);
        let entered = recording.enter();
        for name in ["prefill", "decode", "decode"] {
            let _top = top(name);
            let _text = scope(format_args!("text"));
            for layer in 0..2 {
                let _layer = scope(format_args!("layers.{layer}"));
                let _mlp = module("mlp");
            }
        }
        drop(entered);
        let records = recording.finish();
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
        let mut recording = Recording::new(None);
        recording.run(|| {
            let _top = top("vision");
            let _module = module("patch_embed");
            std::thread::sleep(Duration::from_millis(5));
        });
        let records = recording.finish();
        assert!(records[1].time >= Duration::from_millis(5));
        assert!(records[0].time >= records[1].time);
        assert_eq!(records[0].spans.len(), 1);
    }
}
