//! Persistent threads that share the work of one call at a time.
//!
//! A call of [`ThreadPool::run`] hands task numbers out one by one to whoever is free; the caller takes
//! part. Between calls the workers spin for some microseconds, because a model issues hundreds of short
//! calls per token, and then sleep.
#![allow(unsafe_code)]

use crate::cpu::{Isa, Kernels};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps. Longer than the gaps between the operations of one
/// token, short enough to leave an idle machine alone.
const SPIN: Duration = Duration::from_micros(100);

thread_local! {
    /// Whether this thread is inside a task: calls from there run inline.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// A team of threads, the caller included, and the kernels they compute with.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held while a call is in progress; whoever finds it taken computes alone.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    kernels: &'static dyn Kernels,
}

/// What the caller and the workers share.
///
/// `state` is `call number << 32 | OPEN | workers inside`. A worker may only enter (count itself in) while
/// the call is open; the caller closes it when no task is left and waits until nobody is inside. So a
/// worker that wakes up late never delays a call.
struct Shared {
    state: AtomicU64,
    /// Written by the caller while the call is closed and nobody is inside, read only from inside.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    shutdown: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    /// Lifetime erased: valid from opening until the last worker has left.
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. It is written only by the caller that holds
// `turn`, while the call is closed and no worker is inside, and read only by workers inside an open call;
// entering and leaving are atomic operations on `state` that order these accesses. The task is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` may be used from any thread.
unsafe impl Send for Shared {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// A pool of `threads` threads, of which `threads - 1` are started here, with the best instruction set
    /// ([`Isa::selected`]). Should the system refuse to start that many, there are fewer.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self::with_isa(threads, Isa::selected().isa)
    }

    /// A pool that computes with the given instruction set, or with [`Isa::Generic`] where this machine does
    /// not have it.
    pub fn with_isa(threads: NonZeroUsize, isa: Isa) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            shutdown: AtomicBool::new(false),
        });
        let workers = (1..threads.get())
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("kernels-{index}");
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Self {
            shared,
            turn: Mutex::new(()),
            workers,
            kernels: isa.kernels(),
        }
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The kernels this pool computes with.
    pub fn kernels(&self) -> &'static dyn Kernels {
        self.kernels
    }

    /// Calls `f` once for each of `0..tasks`, on all threads, and returns when all are done.
    ///
    /// A call from inside a task, or while another thread is using the pool, runs on the calling thread alone.
    ///
    /// # Panics
    /// If a task panics: with the first panic, after all tasks have been tried.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        if tasks == 0 {
            return;
        }
        let turn = if tasks > 1 && !self.workers.is_empty() && !BUSY.get() {
            self.turn.try_lock().ok()
        } else {
            None
        };
        if turn.is_none() {
            return run_inline(tasks, f);
        }
        let task: *const (dyn Fn(usize) + Sync + '_) = &f;
        // SAFETY: only the lifetime changes. No worker can use the pointer after `finish` returns, and `f`
        // outlives that call: nothing in between unwinds.
        let task = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(task)
        };
        self.shared.open(Job { task, tasks });
        BUSY.set(true);
        self.shared.take_tasks(Job { task, tasks });
        BUSY.set(false);
        self.shared.close();
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `0..len` into ranges of at least `grain` elements, several per thread, and calls `f` for each.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_ranges(&self, len: usize, grain: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        if len == 0 {
            return;
        }
        let tasks = (len / grain.max(1)).clamp(1, self.threads() * 4);
        // Spread the remainder without `index * len`, which may overflow.
        let (size, rest) = (len / tasks, len % tasks);
        let start = |index: usize| index * size + index.min(rest);
        self.run(tasks, |index| f(start(index)..start(index + 1)));
    }
}

fn run_inline(tasks: usize, f: impl Fn(usize)) {
    let mut first = None;
    for index in 0..tasks {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(index))) {
            first.get_or_insert(panic);
        }
    }
    if let Some(panic) = first {
        resume_unwind(panic);
    }
}

impl Shared {
    /// Publishes a job. Only by the holder of `turn`.
    fn open(&self, job: Job) {
        // SAFETY: the previous call is closed and nobody is inside, so nobody reads `job`.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        let call = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        // Sequentially consistent against `sleepers`: either a worker about to sleep sees the open call or we
        // see the sleeper.
        self.state.store(call << 32 | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }

    /// Lets no more workers in and waits until all have left.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut spins = 0u32;
        while state & INSIDE != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                // A worker was taken off its core in the middle of a task.
                std::thread::yield_now();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Executes tasks until none is left.
    fn take_tasks(&self, job: Job) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            // SAFETY: the caller of `run` keeps the closure alive until this thread has left the call.
            let task = unsafe { &*job.task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }

    /// The life of a worker.
    fn work(&self) {
        BUSY.set(true);
        let mut done = 0;
        while !self.shutdown.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN == 0 || state >> 32 == done {
                self.wait(done);
                continue;
            }
            if self
                .state
                .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = state >> 32;
            // SAFETY: this thread is inside an open call, so the job is set and not written.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_tasks(job);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns when there may be a call newer than `done`: spins for a while, then sleeps.
    fn wait(&self, done: u64) {
        let idle = || {
            let state = self.state.load(Ordering::SeqCst);
            (state & OPEN == 0 || state >> 32 == done) && !self.shutdown.load(Ordering::SeqCst)
        };
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..64 {
                if !idle() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while idle() {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.lock));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks and has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads())
            .field("isa", &self.kernels.isa())
            .finish()
    }
}

static GLOBAL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);

/// The process-wide pool, started at the first call with one thread per available core.
pub fn global() -> Arc<ThreadPool> {
    let mut global = lock(&GLOBAL);
    let pool = global.get_or_insert_with(|| {
        Arc::new(ThreadPool::new(
            std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        ))
    });
    Arc::clone(pool)
}

/// Replaces the process-wide pool by one of `n` threads. Whoever still holds the old one can go on using it.
pub fn set_global_threads(n: NonZeroUsize) {
    let pool = Arc::new(ThreadPool::new(n));
    let old = lock(&GLOBAL).replace(pool);
    // Joining its threads must not happen under the lock.
    drop(old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn every_task_runs_once() {
        for threads in 1..=4 {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 3, 7, 100] {
                for _ in 0..50 {
                    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(
                        counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                        "{threads} threads, {tasks} tasks"
                    );
                }
            }
        }
    }

    #[test]
    fn ranges_cover_without_overlap() {
        let pool = pool(3);
        for len in [0, 1, 5, 64, 1000] {
            let counts: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
            pool.run_ranges(len, 7, |range| {
                for i in range {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{len}"
            );
        }
    }

    #[test]
    fn workers_take_part() {
        let pool = pool(2);
        let started = AtomicU32::new(0);
        // Each task waits for the other: one thread alone would time out.
        let deadline = Instant::now() + Duration::from_secs(20);
        pool.run(2, |_| {
            started.fetch_add(1, Ordering::SeqCst);
            while started.load(Ordering::SeqCst) < 2 {
                assert!(Instant::now() < deadline, "the worker never came");
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = pool(2);
        for _ in 0..3 {
            std::thread::sleep(SPIN * 20);
            let started = AtomicU32::new(0);
            let deadline = Instant::now() + Duration::from_secs(20);
            pool.run(2, |_| {
                started.fetch_add(1, Ordering::SeqCst);
                while started.load(Ordering::SeqCst) < 2 {
                    assert!(Instant::now() < deadline, "the worker slept on");
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_is_propagated_after_all_tasks() {
        for threads in [1, 3] {
            let pool = pool(threads);
            let done = AtomicU32::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(10, |i| {
                    if i == 4 {
                        panic!("task four");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                })
            }));
            assert_eq!(
                caught.unwrap_err().downcast_ref::<&str>(),
                Some(&"task four")
            );
            assert_eq!(done.load(Ordering::Relaxed), 9);
            // The pool is still usable.
            pool.run(10, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.load(Ordering::Relaxed), 19);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_complete() {
        let pool = pool(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(4, |_| {
                            pool.run(5, |i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 100 * 4 * 10);
    }

    #[test]
    fn the_global_pool_can_be_replaced() {
        let before = global();
        set_global_threads(NonZeroUsize::new(3).unwrap());
        assert_eq!(global().threads(), 3);
        let count = AtomicU32::new(0);
        before.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }
}
