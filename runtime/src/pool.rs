//! Runs the steps of a program on a fixed number of threads; the share of each thread depends on nothing but its index.
//!
//! The caller is thread 0 and the workers are the others. A run is published by moving the `start` epoch; then every
//! thread walks the steps by itself, calls the kernel for its own share and meets the others where a step has a barrier.
//! The barrier of the last step tells the caller that the run is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::error::RuntimeError;
use crate::memory::MappedRegion;
use crate::program::{Program, Step};
use crate::sync::{Barrier, Epoch};

/// Some 50 to 100 microseconds where a pause takes 140 cycles: longer than most steps are out of balance.
const SPINS: u32 = 2000;

/// Scratch areas of two threads share no pair of cache lines.
const SCRATCH_ALIGN: usize = 128;

/// The threads of one session.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub(crate) fn new(program: Arc<Program>, threads: usize) -> Result<Self, RuntimeError> {
        let shared = Arc::new(Shared::new(program, threads)?);
        let mut pool = Self { shared, workers: Vec::with_capacity(threads.saturating_sub(1)) };
        for index in 1..threads {
            pool.workers.push(pool.spawn(index)?);
        }
        Ok(pool)
    }

    fn spawn(&self, index: usize) -> Result<JoinHandle<()>, RuntimeError> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name(format!("vitc-worker-{index}"))
            .spawn(move || work(&shared, index))
            .map_err(|source| RuntimeError::Spawn { source })
    }

    /// Threads that run kernels, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs all steps and returns when they are done.
    ///
    /// # Safety
    /// `table` holds [`Program::arg_count`] pointers, each to the memory that its [`Buffer`](crate::Buffer) names for
    /// this batch; the number of items of every step fits; nobody else touches that memory before this returns.
    pub(crate) unsafe fn run(&mut self, table: *const *mut u8, batch: usize) {
        let job = &self.shared.job;
        job.table.store(table.cast_mut(), Ordering::Relaxed);
        job.batch.store(batch, Ordering::Relaxed);
        self.shared.start.advance();
        run_steps(&self.shared, 0);
    }

    /// Switches the clock around steps on or off.
    pub(crate) fn set_profiling(&mut self, on: bool) {
        self.shared.profiling.store(on, Ordering::Relaxed);
    }

    /// Whether the clock is on.
    pub(crate) fn profiling(&self) -> bool {
        self.shared.profiling.load(Ordering::Relaxed)
    }

    /// What thread 0 has spent on each step since the last [`Pool::clear_laps`].
    pub(crate) fn laps(&self) -> impl Iterator<Item = &Lap> {
        self.shared.laps.iter()
    }

    /// Sets all clocks to zero.
    pub(crate) fn clear_laps(&mut self) {
        self.shared.laps.iter().for_each(Lap::clear);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.start.advance();
        for worker in self.workers.drain(..) {
            // A worker cannot unwind (`run_steps` aborts), so there is no error to report.
            let _ = worker.join();
        }
    }
}

/// What all threads see.
#[derive(Debug)]
struct Shared {
    program: Arc<Program>,
    threads: usize,
    start: Epoch,
    stop: AtomicBool,
    job: Job,
    barrier: Barrier,
    scratch: MappedRegion,
    scratch_stride: usize,
    profiling: AtomicBool,
    laps: Vec<Lap>,
}

/// Nanoseconds of thread 0 on one step. It has the largest share of each step, so little that another thread waits for
/// it goes unseen.
#[derive(Debug, Default)]
pub(crate) struct Lap {
    work: AtomicU64,
    wait: AtomicU64,
}

impl Lap {
    /// Time in the kernel.
    pub(crate) fn work(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// Time at the barrier after it.
    pub(crate) fn wait(&self) -> u64 {
        self.wait.load(Ordering::Relaxed)
    }

    fn clear(&self) {
        self.work.store(0, Ordering::Relaxed);
        self.wait.store(0, Ordering::Relaxed);
    }
}

/// The run at hand: written before `start` moves, read after it has been seen to move.
#[derive(Debug)]
struct Job {
    table: AtomicPtr<*mut u8>,
    batch: AtomicUsize,
}

impl Shared {
    fn new(program: Arc<Program>, threads: usize) -> Result<Self, RuntimeError> {
        let spins = if threads <= available_threads() { SPINS } else { 0 };
        let (scratch, scratch_stride) = map_scratch(program.scratch_bytes(), threads)?;
        Ok(Self {
            threads,
            start: Epoch::new(spins),
            stop: AtomicBool::new(false),
            job: Job { table: AtomicPtr::new(std::ptr::null_mut()), batch: AtomicUsize::new(0) },
            barrier: Barrier::new(threads, spins),
            scratch,
            scratch_stride,
            profiling: AtomicBool::new(false),
            laps: program.steps().iter().map(|_| Lap::default()).collect(),
            program,
        })
    }

    /// The scratch of one thread.
    fn scratch(&self, thread: usize) -> *mut u8 {
        self.scratch.as_ptr().cast_mut().wrapping_add(thread * self.scratch_stride)
    }

    /// Calls the kernel of `step` for the share of `thread`, if it has one.
    ///
    /// # Safety
    /// As [`Pool::run`], with `args` the part of the table that belongs to the step.
    unsafe fn call(&self, step: &Step, args: *const *mut u8, batch: usize, thread: usize) {
        let share = step.share(batch, thread, self.threads);
        if share.is_empty() {
            return;
        }
        // SAFETY: the caller vouches for the table and `Program::new` was promised a kernel that keeps to its
        // buffers; the shares of the threads are disjoint and the scratch belongs to this thread alone.
        unsafe { (step.kernel)(args, share.start as i64, share.end as i64, batch as i64, self.scratch(thread)) }
    }
}

/// Cores that this process may use.
pub(crate) fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn map_scratch(bytes: usize, threads: usize) -> Result<(MappedRegion, usize), RuntimeError> {
    let stride = bytes.max(1).next_multiple_of(SCRATCH_ALIGN);
    let region = MappedRegion::new_writable(stride.saturating_mul(threads))?;
    Ok((region, stride))
}

/// A worker's life: wait for a run, take part in it, until told to stop.
fn work(shared: &Shared, thread: usize) {
    let mut seen = 0;
    loop {
        seen = shared.start.wait_past(seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        run_steps(shared, thread);
    }
}

/// Walks all steps as one of the threads. Being `extern "C"`, it aborts rather than let a panic leave the others
/// waiting at the barrier or free the memory that they work on.
extern "C" fn run_steps(shared: &Shared, thread: usize) {
    let table: *const *mut u8 = shared.job.table.load(Ordering::Relaxed);
    let batch = shared.job.batch.load(Ordering::Relaxed);
    let mut clock = (thread == 0 && shared.profiling.load(Ordering::Relaxed)).then(Instant::now);
    for (index, (step, lap)) in shared.program.steps().iter().zip(&shared.laps).enumerate() {
        // SAFETY: the caller of `Pool::run` vouches for the table, and the step's part of it lies within.
        unsafe { shared.call(step, table.add(shared.program.arg_start(index)), batch, thread) };
        add_time(&lap.work, &mut clock);
        if step.barrier {
            shared.barrier.wait();
            add_time(&lap.wait, &mut clock);
        }
    }
}

/// Adds the time since the clock was last looked at, if it runs.
fn add_time(sum: &AtomicU64, clock: &mut Option<Instant>) {
    let Some(since) = clock else { return };
    let now = Instant::now();
    let nanos = u64::try_from((now - *since).as_nanos()).unwrap_or(u64::MAX);
    sum.fetch_add(nanos, Ordering::Relaxed);
    *since = now;
}
