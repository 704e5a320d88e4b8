//! Thread pool for short data-parallel calls.
//!
//! [`ThreadPool::run`] distributes task indices dynamically over the workers and the calling thread.
//! Between calls the workers spin for some microseconds before they sleep, because a model makes
//! hundreds of short calls per token.
#![allow(unsafe_code)]

use crate::cpu::{Isa, Kernels};
use crate::meter;
use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that an idle worker spins before it sleeps: longer than the gaps between the operations of one
/// token, short enough not to load an idle machine.
const SPIN: Duration = Duration::from_micros(100);

/// Elements of an elementwise operation that make a task worth another thread.
pub(crate) const GRAIN: usize = 16 * 1024;

thread_local! {
    /// `true` while this thread executes a task, from which calls run inline.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// A pool of threads and the kernels they compute with.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held during a call. A concurrent caller that finds it held runs its tasks inline.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    kernels: &'static dyn Kernels,
}

/// State shared by the caller and the workers.
///
/// `state` is `call number << 32 | OPEN | workers inside`. A worker enters, by incrementing the count,
/// only while the call is open. The caller closes the call when no task is left and waits until the
/// count is zero, so that a worker that wakes up late does not delay the call.
struct Shared {
    state: AtomicU64,
    /// Written by the caller while the call is closed and no worker is inside, read by workers inside.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    /// Nanoseconds in which threads executed tasks of the call, if it is timed.
    busy: AtomicU64,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    shutdown: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    /// Valid until the last worker has left the call; its lifetime is erased.
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Measures the time in which threads execute tasks.
    timed: bool,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written only by the caller that holds `turn`,
// while the call is closed and no worker is inside, and read only by workers inside an open call. The
// atomic operations on `state` by which workers enter and leave order these accesses. The task is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the task that `job` points to may be called from any thread.
unsafe impl Send for Shared {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs while these locks are held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// Creates a pool of `threads` threads, including the calling one, that computes with the selected
    /// instruction set ([`Isa::selected`]). If the system refuses to start a thread, the pool has fewer.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self::with_isa(threads, Isa::selected().isa)
    }

    /// Creates a pool that computes with `isa`, or with [`Isa::Generic`] if this machine does not have
    /// it.
    pub fn with_isa(threads: NonZeroUsize, isa: Isa) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicU64::new(0),
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

    /// Number of threads, including the calling one.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The kernels this pool computes with.
    pub fn kernels(&self) -> &'static dyn Kernels {
        self.kernels
    }

    /// Calls `f` once for each of `0..tasks`, on all threads, and returns when all calls have returned.
    ///
    /// A call from inside a task, or while another thread uses the pool, runs on the calling thread alone.
    ///
    /// # Panics
    /// With the first panic of a task, after all tasks have run.
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
        // SAFETY: only the lifetime changes. No worker uses the pointer after `close` has returned, and `f`
        // outlives that call because nothing in between unwinds.
        let task = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(task)
        };
        let start = meter::is_on().then(Instant::now);
        let job = Job {
            task,
            tasks,
            timed: start.is_some(),
        };
        self.shared.open(job);
        BUSY.set(true);
        self.shared.take_tasks(job);
        BUSY.set(false);
        self.shared.close();
        if let Some(start) = start {
            let all = start.elapsed() * self.threads() as u32;
            let busy = Duration::from_nanos(self.shared.busy.load(Ordering::Relaxed));
            meter::add_wait(all.saturating_sub(busy));
        }
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Divides `0..len` into ranges of at least `grain` elements, at most four per thread, and calls `f`
    /// for each.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_ranges(&self, len: usize, grain: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        if len == 0 {
            return;
        }
        let tasks = (len / grain.max(1)).clamp(1, self.threads() * 4);
        // `index * len` could overflow.
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
    /// Opens a call for `job`. The caller must hold `turn`.
    fn open(&self, job: Job) {
        // SAFETY: the previous call is closed and no worker is inside, so `job` is not read.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.busy.store(0, Ordering::Relaxed);
        let call = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        // Sequentially consistent with `sleepers`: either a worker that is about to sleep sees the open
        // call, or this thread sees the sleeper.
        self.state.store(call << 32 | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }

    /// Closes the call and waits until all workers have left.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut spins = 0u32;
        while state & INSIDE != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                // A worker was preempted inside a task.
                std::thread::yield_now();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Executes tasks until none are left.
    fn take_tasks(&self, job: Job) {
        let start = job.timed.then(Instant::now);
        self.execute(job);
        if let Some(start) = start {
            let busy = start.elapsed().as_nanos() as u64;
            self.busy.fetch_add(busy, Ordering::Relaxed);
        }
    }

    fn execute(&self, job: Job) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            // SAFETY: `run` keeps the closure alive until this thread has left the call.
            let task = unsafe { &*job.task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }

    /// Main loop of a worker.
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
            // SAFETY: this thread is inside an open call, during which the job is not written.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_tasks(job);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a call newer than `done` or the shutdown: spins for [`SPIN`], then sleeps.
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
            // Workers catch the panics of their tasks and do not panic themselves.
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

thread_local! {
    /// Pool in place of the process-wide one on this thread.
    static SCOPED: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// Calls `f` with `pool` in place of the process-wide pool on this thread, so that two threads can
/// compute on partitions of the cores.
pub fn scoped<T>(pool: Arc<ThreadPool>, f: impl FnOnce() -> T) -> T {
    /// Restores the pool on drop, also after a panic.
    struct Restore(Option<Arc<ThreadPool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPED.set(self.0.take());
        }
    }
    let _restore = Restore(SCOPED.replace(Some(pool)));
    f()
}

/// The process-wide pool, or that of [`scoped`]. It is started by the first call, with one thread
/// per available core.
pub fn global() -> Arc<ThreadPool> {
    if let Some(pool) = SCOPED.with_borrow(Clone::clone) {
        return pool;
    }
    let mut global = lock(&GLOBAL);
    let pool = global.get_or_insert_with(|| {
        Arc::new(ThreadPool::new(
            std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        ))
    });
    Arc::clone(pool)
}

/// Replaces the process-wide pool by one of `n` threads. Existing handles to the old pool stay valid.
pub fn set_global_threads(n: NonZeroUsize) {
    let pool = Arc::new(ThreadPool::new(n));
    let old = lock(&GLOBAL).replace(pool);
    // Joins its threads, which must not happen while the lock is held.
    drop(old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_thread_can_have_its_own_pool() {
        let threads = global().threads();
        let own = Arc::new(pool(threads + 1));
        let inside = scoped(own, || {
            let elsewhere = std::thread::spawn(|| global().threads());
            (global().threads(), elsewhere.join().unwrap())
        });
        assert_eq!(inside, (threads + 1, threads));
        assert_eq!(global().threads(), threads);
    }

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
        // Each task waits for the other, so that a single thread would time out.
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
    fn waiting_threads_are_measured() {
        let pool = pool(3);
        let ms = Duration::from_millis;
        let before = meter::totals();
        pool.run(3, |_| std::thread::sleep(ms(1)));
        assert_eq!(meter::totals(), before);
        meter::set(true);
        // One task lasts 20 ms longer than the other two.
        let ended = AtomicU32::new(0);
        let start = Instant::now();
        pool.run(3, |i| match i {
            0 => {
                while ended.load(Ordering::Relaxed) < 2 && start.elapsed() < ms(2000) {
                    std::thread::yield_now();
                }
                std::thread::sleep(ms(20));
            }
            _ => {
                ended.fetch_add(1, Ordering::Relaxed);
            }
        });
        meter::set(false);
        let wait = (meter::totals() - before).wait;
        assert!(wait >= ms(35), "{wait:?}");
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
