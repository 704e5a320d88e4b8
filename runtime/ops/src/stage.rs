//! Timing of named stages: wall time, calls and peak memory.
//!
//! A *top* stage is a step from the input files to the answer (`load`, `media`, `preprocess`,
//! `vision`, `projector`, `prefill`, `decode`). *Modules* are measured inside it and named by their
//! path (`vision.blocks.7.attention`). A [detailed](Recording::detailed) recording also measures the
//! *parts* of modules (`vision.blocks.7.attention.qkv`) and counts their [`Work`]. Model code always
//! creates the guards; while nothing is recorded, a guard costs one thread-local read.
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

mod recorder;

use std::cell::{Cell, RefCell};
use std::fmt::{Arguments, Write};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use edge_lmm_kernels::memory;
use edge_lmm_kernels::meter::{self, ATTENTION_PARTS, Totals};

use self::recorder::Recorder;
pub use crate::work::Work;

/// One call of a stage or module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Start, relative to that of the recording.
    pub start: Duration,
    /// Duration, including that of other stages that ran inside.
    pub time: Duration,
    /// Heap use at the start, in bytes.
    pub begin_bytes: usize,
    /// Heap use at the end, in bytes.
    pub end_bytes: usize,
}

/// Cost of a stage or module, summed over its calls.
#[derive(Debug, Clone, PartialEq)]
pub struct StageRecord {
    /// Name of a top stage, or the path of a module.
    pub name: String,
    /// Enclosing top stage; equal to `name` for a top stage.
    pub stage: &'static str,
    /// Index of the enclosing stage or module among the records; `None` for a top stage, and for a
    /// module that nothing recorded encloses.
    pub parent: Option<usize>,
    /// Wall time. A top stage that runs inside another one interrupts it: its time is not part of
    /// that of the other.
    pub time: Duration,
    /// Part of `time` inside modules that this one encloses.
    pub child_time: Duration,
    /// Time that threads wait within parallel calls, summed over threads; only in
    /// [detailed](Recording::detailed) recordings.
    pub wait: Duration,
    /// Number of calls.
    pub calls: usize,
    /// Peak heap use of the process during the calls, in bytes; 0 if the counting allocator is not
    /// installed.
    pub peak_bytes: usize,
    /// Largest difference between the peak during a call and the heap use at its start.
    pub own_peak_bytes: usize,
    /// Heap use at the start of that call.
    pub held_bytes: usize,
    /// GPU kernels launched by this crate during the calls; 0 on the CPU.
    pub launches: usize,
    /// Work of all calls; `weight_bytes` is that of one call. Only in
    /// [detailed](Recording::detailed) recordings.
    pub work: Work,
    /// Address and length of the weights in memory that products outside of inner modules read; only
    /// in [detailed](Recording::detailed) recordings on the CPU.
    pub weights: Vec<(usize, usize)>,
    /// The calls on the recording thread, for traces.
    pub spans: Vec<Span>,
    /// The same for the calls of a [`Helper`].
    pub helper_spans: Vec<Span>,
    /// Part of `time` in which the recording thread did other work, see [`Helper`].
    pub hidden: Duration,
}

impl StageRecord {
    fn new(name: &str, stage: &'static str, parent: Option<usize>) -> Self {
        Self {
            name: name.to_owned(),
            stage,
            parent,
            time: Duration::ZERO,
            child_time: Duration::ZERO,
            wait: Duration::ZERO,
            calls: 0,
            peak_bytes: 0,
            own_peak_bytes: 0,
            held_bytes: 0,
            launches: 0,
            work: Work::default(),
            weights: Vec::new(),
            spans: Vec::new(),
            helper_spans: Vec::new(),
            hidden: Duration::ZERO,
        }
    }

    /// Adds the work of a call.
    fn add(&mut self, work: Work) {
        let (tokens, weights) = (self.work.tokens, self.work.weight_bytes);
        self.work += work;
        self.work.tokens = tokens + work.tokens;
        self.work.weight_bytes = weights.max(work.weight_bytes);
    }
}

/// Waits until an asynchronous device has done its work.
pub type Synchronize = Box<dyn Fn() + Send>;

/// Kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A part of the path that is not measured.
    Scope,
    /// A top stage.
    Top,
    /// A module.
    Module,
    /// A part of a module, which only detailed recordings measure.
    Part,
}

/// An open stage, module or scope.
struct Frame {
    /// Identifies the guard.
    serial: u64,
    kind: Kind,
    /// Start of the name in [`Context::names`].
    name: usize,
    start: Instant,
    /// Time of top stages that ran inside and do not count.
    interrupted: Duration,
    child_time: Duration,
    wait: Duration,
    launches: usize,
    /// Heap use at the start.
    held: usize,
    outer_peak: usize,
    outer_top: &'static str,
    work: Work,
}

/// Measurements of a frame at its end.
struct End {
    /// Time without interruptions.
    time: Duration,
    /// Time from start to end.
    elapsed: Duration,
    wait: Duration,
    launches: usize,
    peak: usize,
    held: usize,
}

/// The open stages of a thread and its active recordings.
#[derive(Default)]
struct Context {
    top: &'static str,
    frames: Vec<Frame>,
    /// Names of the open frames, one after the other.
    names: String,
    serial: u64,
    recorders: Vec<Recorder>,
    /// `true` while a [`Helper`] runs on this thread.
    helps: bool,
}

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
    static ON: Cell<bool> = const { Cell::new(false) };
    static DETAILED: Cell<bool> = const { Cell::new(false) };
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
        Self::with(synchronize, false)
    }

    /// A recording like [`new`](Self::new) that also measures the parts of modules, counts their
    /// work and measures waiting threads. On an asynchronous device, every part waits for the
    /// device.
    pub fn detailed(synchronize: Option<Synchronize>) -> Self {
        Self::with(synchronize, true)
    }

    fn with(synchronize: Option<Synchronize>, detailed: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Some(Recorder::new(
            NEXT.fetch_add(1, Relaxed),
            synchronize,
            detailed,
        )))
    }

    /// Records on this thread until the guard is dropped.
    pub fn enter(&mut self) -> Entered<'_> {
        // Only a guard that was leaked leaves no recorder.
        let recorder = self.0.take();
        let id = recorder.as_ref().map_or(u64::MAX, |recorder| recorder.id);
        CONTEXT.with_borrow_mut(|context| {
            if let Some(mut recorder) = recorder {
                let frames = 0..context.frames.len();
                recorder.enter(frames.map(|i| (context.frames[i].kind, context.name(i))));
                context.recorders.push(recorder);
            }
            context.set_flags();
        });
        Entered {
            recording: self,
            id,
            thread: PhantomData,
        }
    }

    /// Records on this thread until the result is stopped.
    pub fn start(mut self) -> Running {
        let entered = self.enter();
        let id = entered.id;
        // The recorder stays with the thread.
        std::mem::forget(entered);
        Running {
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
        self.0.map_or_else(Vec::new, Recorder::finish)
    }

    /// Start of the recording, which the times of [`Span`]s are relative to.
    pub fn origin(&self) -> Option<Instant> {
        self.0.as_ref().map(|recorder| recorder.origin)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.recording.0 = CONTEXT.with_borrow_mut(|context| context.leave(self.id));
    }
}

/// A recording that is active on this thread until it is stopped. If it is dropped, it ends without
/// a result.
#[must_use = "a recording is active until it is stopped"]
pub struct Running {
    id: u64,
    /// The recording is active on this thread.
    thread: PhantomData<*const ()>,
}

impl Running {
    /// Ends the recording and returns the stages, in the order in which they were first entered.
    pub fn stop(self) -> Vec<StageRecord> {
        self.take().map_or_else(Vec::new, Recorder::finish)
    }

    fn take(&self) -> Option<Recorder> {
        CONTEXT.with_borrow_mut(|context| context.leave(self.id))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.take();
    }
}

/// Records the stages of a thread that works for another one, whose recordings they are added to.
///
/// It does not measure memory: the peak belongs to the stages of the other thread.
pub struct Helper(Option<Recording>);

impl Helper {
    /// Creates a helper of this thread. It records nothing if this thread does not.
    pub fn new() -> Self {
        Self(recording().then(|| Recording::with(None, detailed())))
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
        let records = helper.records_so_far();
        let tops = records.iter().filter(|record| record.name == record.stage);
        let total: Duration = tops.map(|record| record.time).sum();
        let share =
            total.saturating_sub(waited).as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        CONTEXT.with_borrow_mut(|context| {
            for recorder in &mut context.recorders {
                let offset = helper.origin.saturating_duration_since(recorder.origin);
                for record in records {
                    recorder.add_helper(record, offset, share);
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

/// Returns `true` if this thread records the parts of modules.
pub fn detailed() -> bool {
    DETAILED.get()
}

/// Runs `f` without the recordings of this thread, as a stage that interrupts those around it.
///
/// This is for work that has nothing to do with what is recorded, such as a step of one request
/// while another one is prepared.
pub fn apart<T>(f: impl FnOnce() -> T) -> T {
    let _paused = recording().then(Paused::new);
    f()
}

/// Guard that resumes the recordings of this thread on drop.
struct Paused {
    recorders: Vec<Recorder>,
    interruption: Option<Guard>,
}

impl Paused {
    fn new() -> Self {
        let recorders = CONTEXT.with_borrow_mut(|context| {
            let recorders = std::mem::take(&mut context.recorders);
            context.set_flags();
            recorders
        });
        Self {
            recorders,
            interruption: Some(enter(Kind::Top, format_args!("apart"), "apart")),
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        drop(self.interruption.take());
        CONTEXT.with_borrow_mut(|context| {
            context.recorders.append(&mut self.recorders);
            context.set_flags();
        });
    }
}

/// Counts a GPU kernel launched by this thread.
#[cfg(feature = "cube")]
pub(crate) fn launched() {
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// Guard that ends the stage on drop.
#[must_use = "a stage lasts as long as its guard"]
pub struct Guard(Option<u64>);

/// Enters a top stage. A top stage inside another one interrupts it.
pub fn top(name: &'static str) -> Guard {
    match recording() {
        true => enter(Kind::Top, format_args!("{name}"), name),
        false => Guard(None),
    }
}

/// Enters a module, named by the modules and [`scope`]s around it and `name`.
pub fn module(name: &'static str) -> Guard {
    match recording() {
        true => enter(Kind::Module, format_args!("{name}"), ""),
        false => Guard(None),
    }
}

/// Enters a part of a module, which only [detailed](Recording::detailed) recordings measure. A part
/// with the name of the module directly around it is that module. Outside of stages and modules,
/// nothing is measured.
pub fn part(name: &str) -> Guard {
    let measured = detailed() && CONTEXT.with_borrow(|context| context.has_part(name));
    match measured {
        true => enter(Kind::Part, format_args!("{name}"), ""),
        false => Guard(None),
    }
}

/// Enters an operation, as a module whose name is known only at run time.
#[cfg(feature = "profiled")]
pub(crate) fn operation(name: &str) -> Guard {
    match recording() {
        true => enter(Kind::Module, format_args!("{name}"), ""),
        false => Guard(None),
    }
}

/// Extends the path of the modules inside it, without measuring anything itself.
pub fn scope(path: Arguments<'_>) -> Guard {
    match recording() {
        true => enter(Kind::Scope, path, ""),
        false => Guard(None),
    }
}

/// Counts work of the current module, if a [detailed](Recording::detailed) recording is active.
pub(crate) fn count(work: impl FnOnce() -> Work) {
    if detailed() {
        CONTEXT.with_borrow_mut(|context| context.count(work()));
    }
}

/// Notes the address and length of a weight that the current module reads.
pub(crate) fn weight(weight: impl FnOnce() -> Option<(usize, usize)>) {
    if detailed()
        && let Some(weight) = weight()
    {
        CONTEXT.with_borrow_mut(|context| {
            for recorder in &mut context.recorders {
                recorder.add_weight(weight);
            }
        });
    }
}

/// Runs an attention kernel and divides its time and work, `parts`, among
/// [`ATTENTION_PARTS`](edge_lmm_kernels::meter::ATTENTION_PARTS). A device that does not measure
/// them adds the work to the current module.
pub(crate) fn attention<T>(parts: impl FnOnce() -> [Work; 3], run: impl FnOnce() -> T) -> T {
    if !detailed() {
        return run();
    }
    let parts = parts();
    let before = meter::totals();
    let result = run();
    let times = (meter::totals() - before).attention;
    CONTEXT.with_borrow_mut(|context| {
        let stage = context.top;
        for ((name, time), work) in ATTENTION_PARTS.into_iter().zip(times).zip(parts) {
            context.count(work);
            if time.is_zero() {
                continue;
            }
            for recorder in &mut context.recorders {
                recorder.add_part(name, time, work, stage);
            }
            if let Some(frame) = context.frames.last_mut() {
                frame.child_time += time;
            }
        }
    });
    result
}

/// Opens a frame; `top` is the name of a top stage.
fn enter(kind: Kind, name: Arguments<'_>, top: &'static str) -> Guard {
    CONTEXT.with_borrow_mut(|context| {
        let start = context.names.len();
        // Writing to a string does not fail.
        let _ = context.names.write_fmt(name);
        let outer_top = context.top;
        if kind == Kind::Top {
            context.top = top;
        }
        let name = &context.names[start..];
        for recorder in &mut context.recorders {
            recorder.open(kind, name, context.top);
        }
        let (outer_peak, held) = (memory::peak_bytes(), memory::current_bytes());
        if kind != Kind::Scope && !context.helps {
            memory::set_peak(held);
        }
        context.serial += 1;
        context.frames.push(Frame {
            serial: context.serial,
            kind,
            name: start,
            start: Instant::now(),
            interrupted: Duration::ZERO,
            child_time: Duration::ZERO,
            wait: meter::totals().wait,
            launches: LAUNCHES.get(),
            held,
            outer_peak,
            outer_top,
            work: Work::default(),
        });
        Guard(Some(context.serial))
    })
}

impl Context {
    /// Returns the name of an open frame.
    fn name(&self, frame: usize) -> &str {
        let end = self.frames.get(frame + 1);
        let end = end.map_or(self.names.len(), |frame| frame.name);
        &self.names[self.frames[frame].name..end]
    }

    /// Returns `true` if a part of that name can be measured here: inside of a frame of another name.
    fn has_part(&self, name: &str) -> bool {
        let innermost = self.frames.len().checked_sub(1);
        innermost.is_some_and(|frame| self.name(frame) != name)
    }

    /// Removes a recording from this thread.
    fn leave(&mut self, id: u64) -> Option<Recorder> {
        let place = self.recorders.iter().position(|other| other.id == id)?;
        let recorder = self.recorders.remove(place);
        self.set_flags();
        Some(recorder)
    }

    /// Sets the flags of this thread for its recordings.
    fn set_flags(&self) {
        let detailed = self.recorders.iter().any(|recorder| recorder.detailed);
        ON.set(!self.recorders.is_empty());
        DETAILED.set(detailed);
        meter::set(detailed);
    }

    fn count(&mut self, work: Work) {
        if let Some(frame) = self.frames.last_mut() {
            frame.work += work;
        }
    }

    /// Ends the innermost frame.
    fn close(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        self.names.truncate(frame.name);
        if frame.kind != Kind::Scope {
            for recorder in &self.recorders {
                if let Some(synchronize) = &recorder.synchronize {
                    synchronize();
                }
            }
        }
        let end = self.end(&frame);
        self.top = frame.outer_top;
        for recorder in &mut self.recorders {
            recorder.close(&frame, &end);
        }
        if frame.kind == Kind::Top {
            for outer in &mut self.frames {
                outer.interrupted += end.elapsed - frame.interrupted;
                outer.wait += end.wait;
                outer.launches += end.launches;
            }
        } else if let Some(outer) = self.frames.last_mut() {
            outer.work += frame.work;
            outer.child_time += match frame.kind {
                Kind::Scope => frame.child_time,
                _ => end.time,
            };
        }
    }

    /// Measures a frame at its end and restores the peak of the frame around it.
    fn end(&self, frame: &Frame) -> End {
        let elapsed = frame.start.elapsed();
        let mut peak = 0;
        if frame.kind != Kind::Scope && !self.helps {
            peak = memory::peak_bytes();
            memory::set_peak(peak.max(frame.outer_peak));
        }
        let Totals { wait, .. } = meter::totals();
        End {
            time: elapsed.saturating_sub(frame.interrupted),
            elapsed,
            wait: wait.saturating_sub(frame.wait),
            launches: LAUNCHES.get() - frame.launches,
            peak,
            held: memory::current_bytes(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(serial) = self.0.take() else { return };
        CONTEXT.with_borrow_mut(|context| {
            let mut frames = context.frames.iter();
            if let Some(place) = frames.position(|frame| frame.serial == serial) {
                // Frames inside it that are still open end with it.
                while context.frames.len() > place {
                    context.close();
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

    #[test]
    fn own_and_child_time_are_the_whole() {
        let mut recording = Recording::detailed(None);
        recording.run(|| {
            let _top = top("vision");
            for block in 0..3 {
                let _block = scope(format_args!("blocks.{block}"));
                let _module = module("attention");
                for name in ["norm", "qkv", "out"] {
                    let _part = part(name);
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        let records = recording.finish();
        assert_eq!(records.len(), 1 + 3 * 4);
        for (place, record) in records.iter().enumerate() {
            let children = records.iter().filter(|other| other.parent == Some(place));
            let sum: Duration = children.map(|child| child.time).sum();
            assert_eq!(record.child_time, sum, "{}", record.name);
            assert!(record.child_time <= record.time, "{}", record.name);
        }
        let qkv = &records[3];
        assert_eq!(qkv.name, "blocks.0.attention.qkv");
        assert_eq!(records[qkv.parent.unwrap()].name, "blocks.0.attention");
    }

    #[test]
    fn only_detailed_recordings_have_parts() {
        let mut plain = Recording::new(None);
        let mut detailed = Recording::detailed(None);
        let work = || {
            let _top = top("prefill");
            let _module = module("mlp");
            let _part = part("norm");
            count(|| Work {
                bytes: 8,
                tokens: 2,
                ..Work::default()
            });
        };
        plain.run(|| {
            assert!(!super::detailed());
            work();
            detailed.run(work);
        });
        let names = |records: &[StageRecord]| -> Vec<String> {
            records.iter().map(|record| record.name.clone()).collect()
        };
        let (plain, detailed) = (plain.finish(), detailed.finish());
        assert_eq!(names(&plain), ["prefill", "mlp"]);
        assert_eq!(names(&detailed), ["prefill", "mlp", "mlp.norm"]);
        // Work belongs to all that enclose it.
        for record in &detailed {
            assert_eq!((record.work.bytes, record.work.tokens), (8, 2));
        }
    }

    #[test]
    fn a_stage_inside_another_interrupts_it() {
        let ms = Duration::from_millis;
        let mut recording = Recording::new(None);
        let start = Instant::now();
        recording.run(|| {
            let _outer = top("prefill");
            let _module = module("embedding");
            let _inner = top("vision");
            std::thread::sleep(ms(20));
        });
        let whole = start.elapsed();
        let records = recording.finish();
        let [prefill, embedding, vision] = &records[..] else {
            panic!("{records:?}")
        };
        assert_eq!((vision.name.as_str(), vision.parent), ("vision", None));
        assert!(vision.time >= ms(20));
        for outer in [prefill, embedding] {
            assert!(outer.time + vision.time <= whole, "{records:?}");
        }
    }

    #[test]
    fn work_apart_interrupts_and_is_not_recorded() {
        let ms = Duration::from_millis;
        let (mut outer, mut inner) = (Recording::new(None), Recording::new(None));
        let start = Instant::now();
        outer.run(|| {
            let _outer = top("prefill");
            let _module = module("layer");
            apart(|| {
                assert!(!recording());
                std::thread::sleep(ms(20));
                inner.run(|| {
                    let _inner = top("decode");
                    std::thread::sleep(ms(20));
                });
            });
            assert!(recording());
        });
        let whole = start.elapsed();
        let (outer, inner) = (outer.finish(), inner.finish());
        let names: Vec<&str> = outer.iter().map(|record| &*record.name).collect();
        assert_eq!(names, ["prefill", "layer"]);
        for record in &outer {
            assert!(record.time + ms(40) <= whole, "{record:?}");
        }
        let [decode] = &inner[..] else {
            panic!("{inner:?}")
        };
        assert!(
            decode.name == "decode" && decode.time >= ms(20),
            "{decode:?}"
        );
        assert!(outer[0].time + decode.time + ms(20) <= whole);
    }

    #[test]
    fn a_part_named_like_its_module_is_that_module() {
        let mut recording = Recording::detailed(None);
        recording.run(|| {
            let _module = module("head");
            let _part = part("head");
        });
        assert_eq!(recording.finish().len(), 1);
    }

    #[test]
    fn a_recording_does_not_have_the_stages_around_it() {
        let mut recording = Recording::new(None);
        Recording::new(None).run(|| {
            let _top = top("vision");
            let _scope = scope(format_args!("vision"));
            recording.run(|| drop(module("patch_embed")));
        });
        let records = recording.finish();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].name, "vision.patch_embed");
        assert_eq!((records[0].stage, records[0].parent), ("vision", None));
    }

    #[test]
    fn each_weight_is_listed_once() {
        let mut recording = Recording::detailed(None);
        recording.run(|| {
            for _ in 0..2 {
                let _top = top("decode");
                let _module = module("mlp");
                weight(|| Some((4096, 100)));
            }
        });
        assert_eq!(recording.finish()[1].weights, [(4096, 100)]);
    }
}
