//! Runs the steps of a program on a fixed number of threads; the share of each thread depends on nothing but its index.
//!
//! The caller is thread 0 and the workers are the others. A run is published by moving the `start` epoch; then every
//! thread walks the steps by itself, calls the kernel for its own share and meets the others at the barrier. The
//! barrier of the last step tells the caller that the run is over.

use std::ops::Range;
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

    /// Nanoseconds spent in each step since the last [`Pool::clear_laps`].
    pub(crate) fn laps(&self) -> impl Iterator<Item = u64> {
        self.shared.laps.iter().map(|lap| lap.load(Ordering::Relaxed))
    }

    /// Sets all clocks to zero.
    pub(crate) fn clear_laps(&mut self) {
        self.shared.laps.iter().for_each(|lap| lap.store(0, Ordering::Relaxed));
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
    laps: Vec<AtomicU64>,
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
            laps: program.steps().iter().map(|_| AtomicU64::new(0)).collect(),
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
        let items = step.items.per_batch * batch + step.items.fixed;
        let share = share(items, step.grain, thread, self.threads);
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
    let mut lap = (thread == 0 && shared.profiling.load(Ordering::Relaxed)).then(Instant::now);
    for (index, step) in shared.program.steps().iter().enumerate() {
        // SAFETY: the caller of `Pool::run` vouches for the table, and the step's part of it lies within.
        unsafe { shared.call(step, table.add(shared.program.arg_start(index)), batch, thread) };
        shared.barrier.wait();
        if let Some(since) = &mut lap {
            add_lap(&shared.laps[index], since);
        }
    }
}

fn add_lap(lap: &AtomicU64, since: &mut Instant) {
    let now = Instant::now();
    let nanos = u64::try_from((now - *since).as_nanos()).unwrap_or(u64::MAX);
    lap.fetch_add(nanos, Ordering::Relaxed);
    *since = now;
}

/// The items of `thread`: whole grains, contiguous, in order of the threads, the earlier threads taking the remainder.
fn share(items: usize, grain: usize, thread: usize, threads: usize) -> Range<usize> {
    let grains = items.div_ceil(grain);
    let (each, extra) = (grains / threads, grains % threads);
    let first = each * thread + thread.min(extra);
    let end = first + each + usize::from(thread < extra);
    first.saturating_mul(grain).min(items)..end.saturating_mul(grain).min(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_items_once_at_multiples_of_the_grain() {
        for items in [0, 1, 2, 15, 16, 17, 197, 1000] {
            for grain in [1, 2, 16, 64, 5000] {
                for threads in [1, 2, 3, 4, 7, 16] {
                    check_shares(items, grain, threads);
                }
            }
        }
    }

    fn check_shares(items: usize, grain: usize, threads: usize) {
        let mut next = 0;
        for thread in 0..threads {
            let share = share(items, grain, thread, threads);
            assert!(share.start == next && share.start <= share.end);
            assert!(share.start == items || share.start.is_multiple_of(grain));
            next = share.end;
        }
        assert_eq!(next, items);
    }

    #[test]
    fn shares_differ_by_at_most_one_grain() {
        let sizes: Vec<usize> = (0..7).map(|thread| share(30, 1, thread, 7).len()).collect();
        assert_eq!(sizes, [5, 5, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn huge_counts_do_not_overflow() {
        let huge = i64::MAX as usize;
        assert_eq!(share(huge, huge - 1, 1, 2), huge - 1..huge);
        assert_eq!(share(1, usize::MAX, 0, 3), 0..1);
    }
}
